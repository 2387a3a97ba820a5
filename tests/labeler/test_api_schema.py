"""The REST interface against its own OpenAPI description: whatever is sent, the answer is one that is described.

schemathesis makes requests from the description, right and wrong ones; a longer run than this one:
    st run URL/api/v1/openapi.json --header "Authorization: Bearer TOKEN" --max-examples 200
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from labeler.api import create_api
from tests.labeler.served import API, Team, team

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with team(tmp_path_factory.mktemp("schema"), 8) as found:
        with found.workspace.store.write() as db:  # so that no request revokes the token by its number
            db.execute("UPDATE tokens SET id = 987654321 WHERE user_id = ?", [found.users["owner"].id])
        yield found


# known without a workspace, so that every operation is a test of its own
operations = schemathesis.openapi.from_dict(create_api(None).openapi())  # type: ignore[arg-type]


@operations.parametrize()
@settings(max_examples=5, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_described(case: schemathesis.Case, app: Team) -> None:
    headers = {"Authorization": f"Bearer {app.secrets['owner']}"}
    case.call_and_validate(base_url=app.url + API, headers=headers, checks=CHECKS)
