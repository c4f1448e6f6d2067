"""The network's messages: two small `.proto` files and the classes that protoc generated from them.

Compile them again after a change, from the root of the repository, with protoc 25 (`grpcio-tools==1.62.3` in a virtual
environment of its own). Its code runs with every later runtime of protobuf; newer compilers bind theirs to two major
versions. `tests/unit/chain/test_protos.py` fails while the classes differ from the files.

    python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. forecastd/chain/proto/*.proto
"""
