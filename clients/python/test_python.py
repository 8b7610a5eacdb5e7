"""Tests guard.py and client.py against a real Watchword server."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool

HERE = os.path.dirname(os.path.abspath(__file__))
GENERATED = tempfile.mkdtemp(prefix="watchword-python-gen-")
atexit.register(shutil.rmtree, GENERATED)
subprocess.run([os.path.join(HERE, "generate.sh"), GENERATED, "diary.proto"], check=True,
               env=os.environ | {"PROTO_PATH": os.path.join(HERE, "testing")})
sys.path[:0] = [HERE, GENERATED]

import client  # noqa: E402
import diary_pb2_grpc  # noqa: E402
import guard  # noqa: E402
import refusal_pb2  # noqa: E402
from diary_pb2 import Entry  # noqa: E402
from testing.watchword_server import Server  # noqa: E402
from watchword.v1 import access_pb2, auth_pb2, auth_pb2_grpc, user_pb2  # noqa: E402

UNAUTHENTICATED, PERMISSION_DENIED, UNAVAILABLE = (
    grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE)
PASSWORDS = {"alice": "a password of alice", "bob": "a password of bob"}
SERVICE = "/watchword.testing.Diary/"
WAIT = 30  # seconds: the longest wait for what takes milliseconds

server = brief = watchword = alice = bob = press = None


def setUpModule():
    global server, brief, watchword, alice, bob, press
    server = Server("--audience", "internal", "--audience", "press")
    brief = Server("--access-ttl", "1s")
    watchword = client.Watchword(grpc.insecure_channel(server.address))  # loopback
    admin = watchword.login("admin", server.admin_password, ["watchword"])
    for name, roles in (("alice", ["writer"]), ("bob", [])):
        request = user_pb2.CreateUserRequest(username=name, password=PASSWORDS[name], roles=roles)
        watchword.users.CreateUser(request, metadata=admin.metadata(), timeout=WAIT)
    alice, bob = login("alice"), login("bob")
    press = login("alice", ["press"])


def login(name, audience=()):
    return watchword.login(name, PASSWORDS[name], audience)


def tearDownModule():
    statuses = brief.stop(), server.stop()
    assert statuses == (0, 0), statuses


class Diary(diary_pb2_grpc.DiaryServicer):
    """Handlers that write into ran as soon as they run."""

    def __init__(self):
        self.ran = []

    def _note(self, method, context):
        caller = guard.principal(context)
        self.ran.append((method, caller and caller.username))

    def _unary(method):
        def handler(self, request, context):
            self._note(method, context)
            return Entry(text=request.text)
        return handler

    About, Read, Write, Print, Confess = map(_unary, ["About", "Read", "Write", "Print", "Confess"])

    def Watch(self, request, context):
        self._note("Watch", context)
        while True:
            yield Entry(text=request.text)

    def Collect(self, requests, context):
        self._note("Collect", context)
        return Entry(text=",".join(entry.text for entry in requests))

    def Talk(self, requests, context):
        self._note("Talk", context)
        yield from requests


class Guarded:
    """A server with a Diary behind an interceptor, for one block. After the block every handler has ended."""

    def __init__(self, interceptor):
        self.diary, self._pool = Diary(), futures.ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool, interceptors=[interceptor])
        diary_pb2_grpc.add_DiaryServicer_to_server(self.diary, self._server)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}")
        self.stub = diary_pb2_grpc.DiaryStub(self._channel)

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self._channel.close()
        self._server.stop(None).wait()
        self._pool.shutdown(wait=True)

    def call(self, method, metadata=()):
        """Make a call of any kind, and return the texts of its answers."""
        entry = Entry(text="dear diary")
        request = iter([entry, entry]) if method in ("Collect", "Talk") else entry
        answer = getattr(self.stub, method)(request, metadata=metadata, timeout=WAIT)
        if method == "Watch":
            first = [next(answer).text]
            answer.cancel()
            return first
        return [answer.text] if isinstance(answer, Entry) else [entry.text for entry in answer]


def guarded(address=None, timeout=WAIT, **options):
    channel = grpc.insecure_channel(address or server.address)
    return Guarded(guard.Guard(channel, "internal", timeout=timeout, **options))


# The methods of each kind, with the answers.
KINDS = {
    "Read": ["dear diary"], "Watch": ["dear diary"],
    "Collect": ["dear diary,dear diary"], "Talk": ["dear diary"] * 2,
}


class Refusing(unittest.TestCase):
    def refused(self, code, why, call, *arguments):
        with self.assertRaises(grpc.RpcError) as caught:
            call(*arguments)
        error = caught.exception
        self.assertEqual((error.code(), client.reason(error)), (code, why), error)
        return error


class TestGuard(Refusing):
    def test_the_handler_knows_the_caller(self):
        with guarded() as service:
            for method, texts in KINDS.items():
                self.assertEqual(service.call(method, alice.metadata()), texts, method)
        self.assertEqual(service.diary.ran, [(method, "alice") for method in KINDS])

    def test_a_public_method_has_no_caller(self):
        with guarded(public=[SERVICE + "Read"]) as service:
            for metadata in ((), alice.metadata(), client.bearer("rubbish")):
                service.call("About", metadata)
                service.call("Read", metadata)
        self.assertEqual(service.diary.ran, [("About", None), ("Read", None)] * 3)

    def test_no_handler_runs_for_a_refused_token(self):
        ended = login("alice")
        ended.logout()
        token = alice.tokens.access_token
        head, payload, signature = token.split(".")
        forged = ".".join([head, payload, signature[:-8] + "AAAAAAAA"])
        cases = [
            ("TOKEN_MISSING", ()),
            ("TOKEN_INVALID", alice.metadata() * 2),
            ("TOKEN_INVALID", alice.metadata() + client.bearer("rubbish")),
            ("TOKEN_INVALID", (("authorization", "Basic " + token),)),
            ("TOKEN_INVALID", (("authorization", token),)),
            ("TOKEN_INVALID", (("authorization", ""),)),
            ("TOKEN_INVALID", (("authorization", "Bearer "),)),
            ("TOKEN_INVALID", (("authorization", f"Bearer {token}, Bearer {token}"),)),
            ("TOKEN_INVALID", client.bearer("rubbish")),
            ("TOKEN_INVALID", client.bearer(forged)),
            ("TOKEN_INVALID", client.bearer(alice.tokens.refresh_token)),
            ("TOKEN_REVOKED", ended.metadata()),
            ("AUDIENCE_MISMATCH", press.metadata()),
        ]
        with guarded() as service:
            for why, metadata in cases:
                for method in KINDS:
                    error = self.refused(UNAUTHENTICATED, why, service.call, method, metadata)
                    self.assertEqual(client.error_info(error).metadata["method"], SERVICE + method)
            blanks = (("authorization", f" bearer   {token}"),)  # as RFC 9110 allows
            service.call("Read", blanks)
        self.assertEqual(service.diary.ran, [("Read", "alice")])

    def test_no_handler_runs_for_an_expired_token(self):
        short = client.Watchword(grpc.insecure_channel(brief.address))
        session = short.login("admin", brief.admin_password)
        try:
            while True:  # for a second
                short.verify(session.tokens.access_token)
        except grpc.RpcError as error:
            self.assertEqual(client.reason(error), "TOKEN_EXPIRED")
        with guarded(brief.address) as service:
            for method in KINDS:
                self.refused(UNAUTHENTICATED, "TOKEN_EXPIRED", service.call, method, session.metadata())
        self.assertEqual(service.diary.ran, [])

    def test_the_rules_of_the_proto_file(self):
        with guarded() as service:
            service.call("Write", alice.metadata())
            self.refused(PERMISSION_DENIED, "ROLE_REQUIRED", service.call, "Write", bob.metadata())
            service.call("Print", press.metadata())
            self.refused(UNAUTHENTICATED, "AUDIENCE_MISMATCH", service.call, "Print", alice.metadata())
            service.call("Confess", bob.metadata())
        self.assertEqual(service.diary.ran, [("Write", "alice"), ("Print", "alice"), ("Confess", "bob")])

    def test_a_method_without_a_descriptor_is_refused(self):
        handler = grpc.unary_unary_rpc_method_handler(lambda request, context: self.fail("the handler ran"))
        details = type("Details", (), {"method": "/elsewhere.Service/Method"})
        unknown = guard.Guard(grpc.insecure_channel(server.address), "internal", timeout=WAIT)
        wrapped = unknown.intercept_service(lambda _: handler, details)
        refusals = []
        context = type("Context", (), {
            "invocation_metadata": lambda _: alice.metadata(), "time_remaining": lambda _: None,
            "abort": lambda _, code, text: refusals.append(code)})()
        with self.assertRaises(AssertionError):  # the handler stays out even if abort returns
            wrapped.unary_unary(b"", context)
        self.assertEqual(refusals, [PERMISSION_DENIED])

    def test_a_rule_of_a_newer_version_is_refused(self):
        """A rule may ask for more than this version knows, so no token opens the method."""
        file = descriptor_pb2.FileDescriptorProto(name="newer.proto", package="newer", dependency=["watchword/v1/access.proto"])
        file.message_type.add(name="Entry")
        service = file.service.add(name="Service")
        for name, rule in (("Field", b"\x2a\x01x"), ("Value", b"\x20\x02"), ("Known", b"\x20\x01")):  # field 5; delegated: 2; delegated: REFUSE
            method = service.method.add(name=name, input_type=".newer.Entry", output_type=".newer.Entry")
            method.options.Extensions[access_pb2.access].ParseFromString(rule)
        descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
        for name in ("Field", "Value"):
            with self.assertRaises(ValueError, msg=name):
                guard._rule("/newer.Service/" + name)
        self.assertEqual(guard._rule("/newer.Service/Known"), access_pb2.Access(delegated="REFUSE"))

    def test_a_revocation_ends_an_open_stream(self):
        session = login("alice")
        release = threading.Event()

        def entries():
            yield Entry(text="before")
            release.wait(WAIT)
            yield Entry(text="after")

        with guarded(recheck=0.0) as service:
            watch = service.stub.Watch(Entry(text="x"), metadata=session.metadata(), timeout=WAIT)
            talk = service.stub.Talk(entries(), metadata=session.metadata(), timeout=WAIT)
            next(watch), next(talk)
            session.logout()
            release.set()
            self.refused(UNAUTHENTICATED, "TOKEN_REVOKED", lambda: [None for _ in watch])
            self.refused(UNAUTHENTICATED, "TOKEN_REVOKED", next, talk)

    def test_no_handler_runs_without_an_answer_of_watchword(self):
        metadata = alice.metadata()
        with guarded("127.0.0.1:1") as service:  # no server
            for method in KINDS:
                self.refused(UNAVAILABLE, None, service.call, method, metadata)
        self.assertEqual(service.diary.ran, [])

        with StandIn() as stand_in:
            with guarded(stand_in.address, timeout=0.2) as service:
                stand_in.answer.clear()
                for method in KINDS:
                    self.refused(UNAVAILABLE, None, service.call, method, metadata)
            self.assertEqual(service.diary.ran, [])
            stand_in.answer.set()
            with guarded(stand_in.address) as service:
                for code in (c for c in grpc.StatusCode if c not in (grpc.StatusCode.OK, UNAUTHENTICATED)):
                    stand_in.code = code
                    self.refused(UNAVAILABLE, None, service.call, "Read", metadata)
                stand_in.code = UNAUTHENTICATED  # but without a reason of Watchword
                self.refused(UNAVAILABLE, None, service.call, "Read", metadata)
                stand_in.code = None
                stand_in.principal = auth_pb2.Principal()  # an answer for no audience
                self.refused(UNAUTHENTICATED, "AUDIENCE_MISMATCH", service.call, "Read", metadata)
                actor = auth_pb2.Actor(subject="a", username="service")
                stand_in.principal = auth_pb2.Principal(username="alice", audience=["internal"], actors=[actor])
                self.refused(PERMISSION_DENIED, "DELEGATION_DENIED", service.call, "Confess", metadata)
                service.call("Read", metadata)
            self.assertEqual(service.diary.ran, [("Read", "alice")])


class StandIn(auth_pb2_grpc.AuthServiceServicer):
    """A server in Watchword's place that fails as a network or a proxy would."""

    def __init__(self):
        self.answer, self.code, self.principal = threading.Event(), None, None
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        auth_pb2_grpc.add_AuthServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self.answer.set()
        self._server.stop(None).wait()

    def Verify(self, request, context):
        self.answer.wait(WAIT)
        if self.code:
            context.abort(self.code, "no answer")
        return auth_pb2.VerifyResponse(principal=self.principal)


class Naive(guard.Guard):
    """The form to avoid: context.abort raises a bare Exception, which the interceptor catches."""

    def intercept_service(self, continuation, details):
        handler = continuation(details)

        def behavior(request, context):
            try:
                self._admit(details.method, guard._rule(details.method), context)
            except Exception:  # such as "log every error of the interceptor"
                pass
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(behavior, handler.request_deserializer, handler.response_serializer)


class TestTheNaiveForm(Refusing):
    """Shows that the tests above could fail: the same refusal, and the handler has run."""

    def test_the_client_is_refused_and_the_handler_runs(self):
        with Guarded(Naive(grpc.insecure_channel(server.address), "internal")) as service:
            self.refused(UNAUTHENTICATED, "TOKEN_MISSING", service.call, "Write")
        self.assertEqual(service.diary.ran, [("Write", None)])


class TestClient(Refusing):
    def test_a_session(self):
        session = login("alice")
        first = session.tokens
        self.assertEqual(watchword.verify(first.access_token, "internal").username, "alice")
        session.refresh()
        self.assertNotEqual(session.tokens.access_token, first.access_token)
        with guarded() as service:
            service.call("Read", session.metadata())
            service.call("Read", client.bearer(first.access_token))  # a refresh ends no access token
            session.logout()
            session.logout()
            self.refused(UNAUTHENTICATED, "TOKEN_REVOKED", service.call, "Read", session.metadata())
        self.refused(UNAUTHENTICATED, "SESSION_REVOKED", session.refresh)
        self.refused(UNAUTHENTICATED, "INVALID_CREDENTIALS", watchword.login, "alice", PASSWORDS["bob"])

    def test_reason_reads_every_error(self):
        info = refusal_pb2.ErrorInfo(reason="TOKEN_EXPIRED", domain="watchword").SerializeToString()
        other = refusal_pb2.ErrorInfo(reason="QUOTA", domain="example.com").SerializeToString()

        def error(*details, trailer=None):
            status = refusal_pb2.Status(code=16)
            for value in details:
                status.details.add(type_url=client.INFO_TYPE, value=value)
            trailers = ((client.DETAILS, status.SerializeToString() if trailer is None else trailer),)
            return type("Error", (grpc.RpcError,), {"trailing_metadata": lambda _: trailers})()

        self.assertEqual(client.reason(error(other, info)), "TOKEN_EXPIRED")
        self.assertIsNone(client.reason(error(other)))
        self.assertIsNone(client.reason(error(b"\xff")))
        self.assertIsNone(client.reason(error(trailer=b"\xff")))
        for value in (None, "refused", Exception("refused"), grpc.RpcError()):
            self.assertIsNone(client.reason(value))


if __name__ == "__main__":
    unittest.main()
