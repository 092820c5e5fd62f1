"""The first word of a client and of a container."""

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from composer_tui.rehearsal.area import Area
from composer_tui.rehearsal.rpc import unary


class Hello(Area):
    """Answers that somebody is there: who asks has been authenticated before."""

    @unary
    async def ClientHello(self, _request: Empty) -> api_pb2.ClientHelloResponse:
        return api_pb2.ClientHelloResponse()

    @unary
    async def ContainerHello(self, _request: Empty) -> Empty:
        return Empty()
