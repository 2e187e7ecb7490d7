"""Checks the shape that all errors have."""

INTERNALS = ("Traceback", "msgspec", "pydantic", "NoneType", "object at 0x", "PIL", "aiohttp", "site-packages")


def check_error(answer, *statuses):
    """The error of ``answer``, of the one shape that all errors have."""
    assert answer.status_code in statuses, f"{answer.status_code}, expected {statuses}: {answer.text}"
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    for internal in INTERNALS:
        assert internal not in answer.text, f"{internal!r} is none of the client's business: {answer.text}"
    return body["error"]
