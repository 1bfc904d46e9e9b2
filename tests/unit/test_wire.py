"""The wire: the tables of the contract against the descriptors, and the generated stubs against proto/."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path
from subprocess import run

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict, Parse

from orisun_api import admin_pb2, eventstore_pb2
from orisun_api import eventstore_pb2 as pb
from orisun_server.core.access import RPCS as RPCS_TABLE
from orisun_server.transport import admin, eventstore
from orisun_server.transport.admin import Admin
from orisun_server.transport.calls import snake_case
from orisun_server.transport.eventstore import EventStore
from orisun_server.transport.wire import problem_of

ROOT = Path(__file__).parents[2]

#: message: "number type name" of each field; a trailing "= spelling" is the second spelling in JSON
MESSAGES = """
Position: 1 int64 commit_position = transaction_id; 2 int64 prepare_position = global_id
Tag: 1 string key; 2 string value
Criterion: 1 repeated Tag tags
Query: 1 repeated Criterion criteria
EventToSave: 1 string event_id; 2 string event_type; 3 string data; 4 string metadata
Event: 1 string event_id; 2 string event_type; 3 string data; 4 string metadata; 6 Position position; \
7 google.protobuf.Timestamp date_created
SaveQuery: 1 Position expected_position; 2 Query subsetQuery; 3 repeated Criterion criteria
Command: 1 string command_id; 2 string type; 3 string data; 4 string metadata
SaveEventsRequest: 2 string boundary; 3 SaveQuery query; 4 repeated EventToSave events; 100 Command command
WriteResult: 1 Position log_position; 2 optional int64 new_global_id = new_global_id; \
3 optional int64 latest_transaction_id = latest_transaction_id; 4 optional int64 latest_global_id = latest_global_id
GetEventsRequest: 1 Query query; 2 Position from_position; 3 uint32 count; 4 Direction direction; 5 string boundary; \
6 Position after_position = last_retrieved_position
GetEventsResponse: 1 repeated Event events
CatchUpSubscribeToEventStoreRequest: 1 Position after_position; 2 Query query; 3 string subscriber_name; \
4 string boundary
GetLatestByCriteriaRequest: 1 string boundary; 2 repeated Criterion criteria
LatestCriterionResult: 1 Criterion criterion; 2 Event event
GetLatestByCriteriaResponse: 1 repeated LatestCriterionResult results; 2 Position context_position
PingRequest:
PingResponse:
GetServerInfoRequest:
GetServerInfoResponse: 1 string version; 2 string git_commit; 3 string build_time; 4 StorageBackend backend; \
5 string node_id; 6 repeated ServerCapability capabilities
IndexField: 1 string json_key; 2 ValueType value_type
IndexCondition: 1 string key; 2 string operator; 3 string value
CreateIndexRequest: 1 string boundary; 2 string name; 3 repeated IndexField fields; \
4 repeated IndexCondition conditions; 5 ConditionCombinator condition_combinator
CreateIndexResponse:
DropIndexRequest: 1 string boundary; 2 string name
DropIndexResponse:
GetIndexRequest: 1 string boundary; 2 string name
ListIndexesRequest: 1 string boundary
IndexDefinition: 1 string name; 2 repeated IndexField fields; 3 repeated IndexCondition conditions; \
4 ConditionCombinator condition_combinator; 5 IndexState state
ListIndexesResponse: 1 repeated IndexDefinition indexes
GetIndexResponse: 1 IndexDefinition index
PublishRequest: 1 string subject; 2 string data; 3 string metadata
PublishResponse:
SubscribeRequest: 1 string subject; 2 string consumer_name
PubSubMessage: 1 string id; 2 string subject; 3 string data; 4 string metadata
GetCommandsRequest: 1 string boundary; 2 Position after_position; 3 uint32 count
StoredCommand: 1 Command command; 2 Position position; 3 google.protobuf.Timestamp date_created
GetCommandsResponse: 1 repeated StoredCommand commands
AdminUser: 1 string user_id; 2 string name; 3 string username; 4 repeated string roles; \
5 google.protobuf.Timestamp created_at; 6 google.protobuf.Timestamp updated_at
CreateUserRequest: 1 string name; 2 string username; 3 string password; 4 repeated string roles
CreateUserResponse: 1 AdminUser user
DeleteUserRequest: 1 string user_id
DeleteUserResponse: 1 bool success
ChangePasswordRequest: 1 string user_id; 2 string current_password; 3 string new_password
ChangePasswordResponse: 1 bool success
ListUsersRequest:
ListUsersResponse: 1 repeated AdminUser users
ValidateCredentialsRequest: 1 string username; 2 string password
ValidateCredentialsResponse: 1 bool success; 2 AdminUser user
GetUserCountRequest:
GetUserCountResponse: 1 int64 count
GetEventCountRequest: 1 string boundary
GetEventCountResponse: 1 int64 count
SetUserRolesRequest: 1 string user_id; 2 repeated string roles
SetUserRolesResponse: 1 AdminUser user
ApiToken: 1 string token_id; 2 string name; 3 repeated string roles; 4 google.protobuf.Timestamp created_at; \
5 google.protobuf.Timestamp expires_at; 6 string created_by
CreateTokenRequest: 1 string name; 2 repeated string roles; 3 google.protobuf.Timestamp expires_at
CreateTokenResponse: 1 string token; 2 ApiToken info
ListTokensRequest:
ListTokensResponse: 1 repeated ApiToken tokens
RevokeTokenRequest: 1 string token_id
RevokeTokenResponse: 1 bool success
GetIndexBuildRequest: 1 string boundary; 2 string name
GetIndexBuildResponse: 1 IndexState state; 2 string phase; 3 uint32 percent
BoundaryPlacementInput: 1 string backend; 2 string namespace
BoundaryInfo: 1 string name; 2 string description; 3 BoundaryPlacementInput placement; \
4 BoundaryLifecycleStatus status; 5 bool existed_before_catalog; 6 string last_error; \
7 Position definition_position; 8 Position status_position
CreateBoundaryRequest: 1 string name; 2 string description; 3 BoundaryPlacementInput placement; \
4 bool existed_before_catalog
CreateBoundaryResponse: 1 BoundaryInfo boundary
ListBoundariesRequest:
ListBoundariesResponse: 1 repeated BoundaryInfo boundaries
GetBoundaryRequest: 1 string name
GetBoundaryResponse: 1 BoundaryInfo boundary
"""

ENUMS = {
    "Direction": {"ASC": 0, "DESC": 1},
    "ValueType": {"TEXT": 0, "NUMERIC": 1, "BOOLEAN": 2, "TIMESTAMPTZ": 3},
    "ConditionCombinator": {"AND": 0, "OR": 1},
    "IndexState": {"INDEX_STATE_UNSPECIFIED": 0, "INDEX_STATE_BUILDING": 1, "INDEX_STATE_READY": 2},
    "StorageBackend": {
        "STORAGE_BACKEND_UNSPECIFIED": 0,
        "STORAGE_BACKEND_POSTGRES": 1,
        "STORAGE_BACKEND_SQLITE": 2,
        "STORAGE_BACKEND_FOUNDATIONDB": 3,
    },
    "ServerCapability": {
        "SERVER_CAPABILITY_UNSPECIFIED": 0,
        "SERVER_CAPABILITY_COMMAND_CONTEXT_CONSISTENCY": 1,
        "SERVER_CAPABILITY_CATCH_UP_SUBSCRIPTIONS": 2,
        "SERVER_CAPABILITY_INDEX_MANAGEMENT": 3,
        "SERVER_CAPABILITY_BOUNDARY_CATALOG": 4,
        "SERVER_CAPABILITY_GRPC_HEALTH": 5,
    },
    "BoundaryLifecycleStatus": {
        "BOUNDARY_LIFECYCLE_STATUS_UNSPECIFIED": 0,
        "BOUNDARY_LIFECYCLE_STATUS_PROVISIONING": 1,
        "BOUNDARY_LIFECYCLE_STATUS_ACTIVE": 2,
        "BOUNDARY_LIFECYCLE_STATUS_FAILED": 3,
    },
}

RPCS = {
    "EventStore": """
        SaveEvents SaveEventsRequest WriteResult
        GetEvents GetEventsRequest GetEventsResponse
        GetLatestByCriteria GetLatestByCriteriaRequest GetLatestByCriteriaResponse
        CatchUpSubscribeToEvents CatchUpSubscribeToEventStoreRequest stream Event
        Ping PingRequest PingResponse
        GetServerInfo GetServerInfoRequest GetServerInfoResponse
        CreateIndex CreateIndexRequest CreateIndexResponse
        DropIndex DropIndexRequest DropIndexResponse
        ListIndexes ListIndexesRequest ListIndexesResponse
        GetIndex GetIndexRequest GetIndexResponse
        PublishToPubSub PublishRequest PublishResponse
        SubscribeToPubSub SubscribeRequest stream PubSubMessage
        GetCommands GetCommandsRequest GetCommandsResponse""",
    "Admin": """
        CreateBoundary CreateBoundaryRequest CreateBoundaryResponse
        ListBoundaries ListBoundariesRequest ListBoundariesResponse
        GetBoundary GetBoundaryRequest GetBoundaryResponse
        CreateUser CreateUserRequest CreateUserResponse
        DeleteUser DeleteUserRequest DeleteUserResponse
        ChangePassword ChangePasswordRequest ChangePasswordResponse
        ListUsers ListUsersRequest ListUsersResponse
        ValidateCredentials ValidateCredentialsRequest ValidateCredentialsResponse
        GetUserCount GetUserCountRequest GetUserCountResponse
        GetEventCount GetEventCountRequest GetEventCountResponse
        CreateIndex CreateIndexRequest CreateIndexResponse
        DropIndex DropIndexRequest DropIndexResponse
        SetUserRoles SetUserRolesRequest SetUserRolesResponse
        CreateToken CreateTokenRequest CreateTokenResponse
        ListTokens ListTokensRequest ListTokensResponse
        RevokeToken RevokeTokenRequest RevokeTokenResponse
        GetIndexBuild GetIndexBuildRequest GetIndexBuildResponse""",
}

FILES = (eventstore_pb2.DESCRIPTOR, admin_pb2.DESCRIPTOR)
SERVICES = {"EventStore": (eventstore.DESCRIPTOR, EventStore), "Admin": (admin.DESCRIPTOR, Admin)}
SCALARS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_BOOL: "bool",
}


def described(field: FieldDescriptor) -> str:
    kind = field.message_type or field.enum_type
    label = "repeated " if field.is_repeated else "optional " if field.containing_oneof else ""
    name = SCALARS[field.type] if kind is None else kind.full_name.removeprefix("orisun.")
    derived = re.sub(r"_(.)", lambda match: match[1].upper(), field.name)
    spelling = f" = {field.json_name}" if field.json_name != derived else ""
    return f"{field.number} {label}{name} {field.name}{spelling}"


def test_messages_have_the_contract_s_numbers_types_and_names() -> None:
    found = {
        message.name: "; ".join(map(described, sorted(message.fields, key=lambda field: field.number)))
        for file in FILES
        for message in file.message_types_by_name.values()
    }
    wanted = dict(line.split(":", 1) for line in MESSAGES.strip().splitlines())
    assert found == {name: fields.strip() for name, fields in wanted.items()}


def test_enums_have_the_contract_s_values() -> None:
    found = {
        enum.name: {value.name: value.number for value in enum.values}
        for file in FILES
        for enum in file.enum_types_by_name.values()
    }
    assert found == ENUMS


@pytest.mark.parametrize("service", RPCS)
def test_services_have_the_contract_s_rpcs(service: str) -> None:
    descriptor, servicer = SERVICES[service]
    assert descriptor.full_name == f"orisun.{service}"
    found = [
        f"{rpc.name} {rpc.input_type.name} {'stream ' if rpc.server_streaming else ''}{rpc.output_type.name}"
        for rpc in descriptor.methods
    ]
    assert sorted(found) == sorted(map(str.strip, RPCS[service].strip().splitlines()))
    assert not any(rpc.client_streaming for rpc in descriptor.methods)
    for rpc in descriptor.methods:
        assert callable(getattr(servicer, snake_case(rpc.name)))
        assert f"{descriptor.full_name}/{rpc.name}" in RPCS_TABLE


def test_the_files_are_proto3_of_package_orisun() -> None:
    for file in FILES:
        assert file.package == "orisun"
        assert 'syntax = "proto3";' in (ROOT / "proto" / file.name).read_text()


def test_every_field_is_documented() -> None:
    for file in FILES:
        lines = (ROOT / "proto" / file.name).read_text().splitlines()
        for above, line in pairwise(lines):
            if re.match(r"\s+(repeated |optional )?[\w.]+ \w+ = \d+", line):
                assert above.strip().startswith("//"), line


def test_generated_stubs_match_proto(tmp_path: Path) -> None:
    files = sorted((ROOT / "proto" / "orisun_api").glob("*.proto"))
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", *outputs, *map(str, files)]
    run(command, check=True, capture_output=True)
    generated = sorted(path for path in (tmp_path / "orisun_api").iterdir())
    committed = ROOT / "client" / "orisun_api"
    assert {path.name for path in generated} == {path.name for path in committed.glob("*_pb2*")}
    for path in generated:
        assert path.read_text() == (committed / path.name).read_text(), f"{path.name} differs; type make proto"


@pytest.mark.parametrize(
    "text",
    [
        '{"commit_position": "7", "prepare_position": "5"}',
        '{"transaction_id": 7, "global_id": 5}',
    ],
)
def test_positions_are_read_in_both_spellings_and_printed_in_the_newest(text: str) -> None:
    parsed = Parse(text, pb.Position())
    assert parsed == pb.Position(commit_position=7, prepare_position=5)
    assert MessageToDict(parsed) == {"transaction_id": "7", "global_id": "5"}


@pytest.mark.parametrize("key", ["after_position", "last_retrieved_position"])
def test_after_position_is_read_in_both_spellings(key: str) -> None:
    parsed = Parse(f'{{"{key}": {{"transaction_id": 1, "global_id": 2}}}}', pb.GetEventsRequest())
    assert parsed.after_position == pb.Position(commit_position=1, prepare_position=2)


def test_a_write_result_prints_zeros() -> None:
    printed = MessageToDict(pb.WriteResult(new_global_id=0, latest_transaction_id=1, latest_global_id=0))
    assert printed == {"new_global_id": "0", "latest_transaction_id": "1", "latest_global_id": "0"}


def test_the_place_of_an_ill_formed_text_is_found() -> None:
    events = [pb.EventToSave(event_id="a"), pb.EventToSave(event_id="b", data="QQ")]
    raw = pb.SaveEventsRequest(boundary="b", events=events).SerializeToString()
    assert problem_of(pb.SaveEventsRequest, raw.replace(b"QQ", b"\xff\xff")) == (
        "events[1].data: the text is not UTF-8"
    )


@pytest.mark.parametrize("raw", [b"\xff", b"\x0f", b"\xff" * 20, b"\x12\x10a", b"\x0b\x0b"])
def test_what_is_no_message_at_all_is_called_so(raw: bytes) -> None:
    assert problem_of(pb.SaveEventsRequest, raw) == "the bytes are no orisun.SaveEventsRequest message"
