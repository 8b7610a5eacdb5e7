"""A client of Watchword, and of services that Watchword guards.

    watchword = client.connect("auth.example.internal:443")
    session = watchword.login("alice", password)
    notes.ListNotes(request, metadata=session.metadata())
    session.refresh()
    session.logout()

Calls fail with grpc.RpcError. A program must compare reason(error), because the text of the
error may change. The objects of this module may be shared by threads.
"""

import threading

import grpc
from google.protobuf.message import DecodeError

import refusal_pb2
from watchword.v1 import auth_pb2, auth_pb2_grpc, user_pb2_grpc

# Bounds a call. The slowest call, Login, hashes a password for some tens of milliseconds, so
# after 10 seconds an answer is unlikely.
TIMEOUT = 10.0  # seconds

DETAILS = "grpc-status-details-bin"
INFO_TYPE = "type.googleapis.com/google.rpc.ErrorInfo"


def error_info(error):
    """Return Watchword's google.rpc.ErrorInfo of an error; None without one.

    If an access token was refused, metadata["method"] names the refusing method. A malformed
    answer counts as an error without ErrorInfo.
    """
    trailers = getattr(error, "trailing_metadata", lambda: None)() or ()
    for value in (value for key, value in trailers if key == DETAILS):
        try:
            for detail in refusal_pb2.Status.FromString(value).details:
                if detail.type_url == INFO_TYPE:
                    info = refusal_pb2.ErrorInfo.FromString(detail.value)
                    if info.domain == "watchword":
                        return info
        except DecodeError:
            continue
    return None


def reason(error):
    """Return why a call was refused, such as "TOKEN_EXPIRED"; None without a reason.

    A reason is a name of the proto enum ErrorReason without the prefix.
    """
    info = error_info(error)
    return info.reason if info else None


def bearer(access_token):
    """Return the metadata of a call with an access token."""
    return (("authorization", f"Bearer {access_token}"),)


def connect(address, credentials=None):
    """Return a client of the server at an address.

    The connection carries passwords and tokens, so connect uses TLS with the roots of the
    system unless the caller passes other credentials.
    """
    return Watchword(grpc.secure_channel(address, credentials or grpc.ssl_channel_credentials()))


class Watchword:
    """The calls to a Watchword server over a channel."""

    def __init__(self, channel):
        self.auth = auth_pb2_grpc.AuthServiceStub(channel)
        self.users = user_pb2_grpc.UserServiceStub(channel)

    def login(self, username, password, audience=()):
        """Start a session.

        audience lists the services that may accept the access tokens of the session; without
        an audience, the first --audience of the server may. To administer users, pass
        ["watchword"] alone.
        """
        request = auth_pb2.LoginRequest(username=username, password=password, audience=audience)
        return Session(self.auth, self.auth.Login(request, timeout=TIMEOUT).tokens)

    def verify(self, access_token, audience=""):
        """Ask the server to check an access token, and return the principal of the token."""
        request = auth_pb2.VerifyRequest(access_token=access_token, audience=audience)
        return self.auth.Verify(request, timeout=TIMEOUT).principal


class Session:
    """The newest tokens of a session."""

    def __init__(self, auth, tokens):
        self._auth = auth
        self._refreshing = threading.Lock()
        self.tokens = tokens

    def metadata(self):
        """Return the metadata of a call, with the newest access token."""
        return bearer(self.tokens.access_token)

    def refresh(self):
        """Replace the tokens.

        The server accepts a refresh token once. So of overlapping calls of refresh, one sends
        the refresh token, and the others wait for its new tokens.
        """
        spent = self.tokens
        with self._refreshing:
            if self.tokens is spent:
                request = auth_pb2.RefreshRequest(refresh_token=spent.refresh_token)
                self.tokens = self._auth.Refresh(request, timeout=TIMEOUT).tokens

    def logout(self):
        """End the session. A second logout also succeeds."""
        request = auth_pb2.LogoutRequest(refresh_token=self.tokens.refresh_token)
        self._auth.Logout(request, timeout=TIMEOUT)
