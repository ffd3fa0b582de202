"""Python stubs of proto/inference.proto, made by grpcio-tools when first asked for."""
import importlib
import sys
import tempfile
from pathlib import Path

import grpc
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent.parent
_folder = None


def load(*protos):
    """The modules NAME_pb2 and NAME_pb2_grpc of each proto file (a path below proto/)."""
    global _folder
    if _folder is None:
        _folder = tempfile.TemporaryDirectory()
        sys.path.insert(0, _folder.name)
    out = []
    for proto in protos:
        name = proto.removesuffix(".proto").replace("/", ".")
        assert protoc.main(["protoc", f"--proto_path={ROOT / 'proto'}", f"--python_out={_folder.name}",
                            f"--grpc_python_out={_folder.name}", str(ROOT / "proto" / proto)]) == 0
        out += [importlib.import_module(f"{name}_pb2"), importlib.import_module(f"{name}_pb2_grpc")]
    return out


def channel(cluster, *options):
    """A channel of its own: nothing is shared with another test's."""
    return grpc.insecure_channel(cluster.grpc, options=[("grpc.use_local_subchannel_pool", 1), *options])
