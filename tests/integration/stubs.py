"""Python stubs of proto/, made by grpcio-tools when first asked for."""
import importlib
import sys
import tempfile
from pathlib import Path

import grpc
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent.parent
_folder = None


def load(proto):
    """The modules NAME_pb2 and NAME_pb2_grpc of a .proto file in a folder's root."""
    global _folder
    if _folder is None:
        _folder = tempfile.TemporaryDirectory()
        sys.path.insert(0, _folder.name)
    path = ROOT / "proto" / proto
    assert protoc.main(["protoc", f"--proto_path={path.parent}", f"--python_out={_folder.name}",
                        f"--grpc_python_out={_folder.name}", str(path)]) == 0
    return importlib.import_module(f"{path.stem}_pb2"), importlib.import_module(f"{path.stem}_pb2_grpc")


def channel(cluster, *options):
    """A channel of its own: nothing is shared with another test's."""
    return grpc.insecure_channel(cluster.grpc, options=[("grpc.use_local_subchannel_pool", 1), *options])
