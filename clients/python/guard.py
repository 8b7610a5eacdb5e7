"""Guards a gRPC server in Python: asks Watchword about the access token of every call.

    watchword = grpc.secure_channel("auth.example.internal:443", grpc.ssl_channel_credentials())
    server = grpc.server(ThreadPoolExecutor(), interceptors=[guard.Guard(watchword, "internal")])

In a handler, guard.principal(context) returns the caller. Guard is for the servers of
grpc.server, which call handlers in threads; a server of grpc.aio needs another interceptor.

The access rule of a method is the option (watchword.v1.access) in the proto file, as for
services in Go. A method without the option needs a valid access token.
"""

import time
import weakref

import grpc
from google.protobuf import descriptor_pool

import client
import refusal_pb2
from watchword.v1 import access_pb2, auth_pb2, auth_pb2_grpc

_principals = weakref.WeakKeyDictionary()  # by the context of the handler


def principal(context):
    """Return the principal (watchword.v1.Principal) of a handler's caller; None in a public method."""
    return _principals.get(context)


class Guard(grpc.ServerInterceptor):
    """The interceptor. public lists the methods ("/package.Service/Method") that need no token.

    Every call to Watchword ends within timeout seconds. A stream passes a message only if
    Watchword has accepted the token within the last recheck seconds.
    """

    def __init__(self, channel, audience, public=(), timeout=1.0, recheck=1.0):
        self._verify = auth_pb2_grpc.AuthServiceStub(channel).Verify
        self._audience, self._public = audience, frozenset(public)
        self._timeout, self._recheck = timeout, recheck

    def intercept_service(self, continuation, details):
        # gRPC calls intercept_service in the one thread that accepts calls. Only the handler runs
        # in the pool of threads, so the question to Watchword belongs into the handler.
        handler, method = continuation(details), details.method
        if handler is None or method in self._public:
            return handler
        rule = _rule(method)
        if rule and rule.public:
            return handler
        kinds = handler.request_streaming, handler.response_streaming
        kind = "_".join("stream" if streaming else "unary" for streaming in kinds)
        behavior = getattr(handler, kind)

        def guarded(request, context):
            _principals[context] = self._admit(method, rule, context)
            checked = time.monotonic()

            def recheck(message):
                nonlocal checked
                if time.monotonic() - checked > self._recheck:
                    self._admit(method, rule, context)
                    checked = time.monotonic()
                return message

            response = behavior(map(recheck, request) if handler.request_streaming else request, context)
            return map(recheck, response) if handler.response_streaming else response

        rebuild = getattr(grpc, kind + "_rpc_method_handler")
        return rebuild(guarded, handler.request_deserializer, handler.response_serializer)

    def _admit(self, method, rule, context):
        """Return the principal of a call, or end the call: _refuse always raises an exception."""
        values = [value for key, value in context.invocation_metadata() if key == "authorization"]
        if not values:
            _refuse(context, grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING", method)
        scheme, _, token = values[0].strip(" \t").partition(" ")
        if len(values) > 1 or scheme.lower() != "bearer" or not token.strip(" "):
            _refuse(context, grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID", method)
        audiences = list(rule.audience) if rule and rule.audience else [self._audience]
        asked = audiences[0] if len(audiences) == 1 else ""  # "" asks for any audience of the server
        request = auth_pb2.VerifyRequest(access_token=token.lstrip(" "), audience=asked)
        left = context.time_remaining()
        timeout = self._timeout if left is None else min(left, self._timeout)
        try:
            caller = self._verify(request, timeout=timeout).principal
        except grpc.RpcError as error:
            code, reason = error.code(), client.reason(error)
            if code is grpc.StatusCode.UNAUTHENTICATED and reason:
                _refuse(context, code, reason, method)
            known = reason if code is grpc.StatusCode.UNAVAILABLE else None
            _refuse(context, grpc.StatusCode.UNAVAILABLE, known, method)
        if not set(audiences) & set(caller.audience):
            _refuse(context, grpc.StatusCode.UNAUTHENTICATED, "AUDIENCE_MISMATCH", method)
        if rule is None:
            _refuse(context, grpc.StatusCode.PERMISSION_DENIED, None, method)
        if rule.delegated == access_pb2.Access.REFUSE and caller.actors:
            _refuse(context, grpc.StatusCode.PERMISSION_DENIED, "DELEGATION_DENIED", method)
        if rule.roles and not set(rule.roles) & set(caller.roles):
            _refuse(context, grpc.StatusCode.PERMISSION_DENIED, "ROLE_REQUIRED", method)
        return caller


def _rule(method):
    """Return the access rule of a method; None without a descriptor of the method.

    Without a descriptor the method may have a rule that this program cannot read, so no token
    opens the method. A rule that contradicts itself raises an exception, which refuses the call.
    So does a rule with a field or a value that this version does not know: the rule may ask for
    more than a valid token.
    """
    service, _, name = method.lstrip("/").rpartition("/")
    try:
        descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    except KeyError:
        return None
    rule = descriptor.GetOptions().Extensions[access_pb2.access]
    if rule.public and rule != access_pb2.Access(public=True):
        raise ValueError(f"{method}: the access rule sets public and another field")
    known = access_pb2.Access()
    known.CopyFrom(rule)
    known.DiscardUnknownFields()
    if known.ByteSize() != rule.ByteSize() or rule.delegated not in access_pb2.Access.Delegated.values():
        raise ValueError(f"{method}: the access rule has a field or a value that this version does not know")
    return rule


def _refuse(context, code, reason, method):
    """End a call with a status, and raise an exception.

    The ErrorInfo names the called method: a client that finds the method of its call renews its
    token and calls again.
    """
    if reason:
        info = refusal_pb2.ErrorInfo(reason=reason, domain="watchword", metadata={"method": method})
        status = refusal_pb2.Status(code=code.value[0], message=_text(code))
        status.details.add(type_url=client.INFO_TYPE, value=info.SerializeToString())
        context.set_trailing_metadata(((client.DETAILS, status.SerializeToString()),))
    context.abort(code, _text(code))
    raise AssertionError("context.abort returned")


def _text(code):
    return {
        grpc.StatusCode.UNAUTHENTICATED: "the access token was refused",
        grpc.StatusCode.PERMISSION_DENIED: "the caller may not call this method",
    }.get(code, "the access token cannot be verified now")
