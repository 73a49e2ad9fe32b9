"""A store that cannot be used says why, in its own words, before long work begins."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from recray.benchmarks.counting_proxy import Refusal
from recray.errors import RecrayError, StorageError
from recray.storage import Folder, check_store, reach
from recray.storage.reasons import is_permanent, reason_of

REGION = (("x-amz-bucket-region", "eu-west-1"),)
MOVED = Refusal(301, "PermanentRedirect", "Please send requests to this endpoint.", REGION)
EXPIRED = Refusal(400, "ExpiredToken", "The provided token has expired.")
DENIED = Refusal(403, "AccessDenied", "Access Denied")
READ_ONLY = Refusal(403, "AccessDenied", "Access Denied", writes_only=True)
BUSY = Refusal(503, "SlowDown", "Please reduce your request rate.")


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (MOVED, "PermanentRedirect: Please send .*; set AWS_DEFAULT_REGION"),
        (EXPIRED, "ExpiredToken: The provided token has expired .*; renew the credentials"),
        (DENIED, "ACCESS_DENIED: Access Denied"),
        (BUSY, "SLOW_DOWN: Please reduce your request rate"),
    ],
)
@pytest.mark.parametrize("to_write", [True, False])
def test_the_reason_is_that_of_the_store(proxy, refusal, reason, to_write):
    proxy.refusal = refusal
    kind = StorageError if to_write else RecrayError
    with proxy.watch() as traffic, pytest.raises(kind, match=reason) as raised:
        check_store("s3://data/x", to_write)
    assert raised.value.exit_code == (3 if to_write else 2)
    assert len(str(raised.value).splitlines()) == 1
    assert traffic.count() <= 4


def test_a_bucket_that_can_be_read_only_is_refused_for_outputs_alone(proxy):
    proxy.refusal = READ_ONLY
    check_store("s3://data/x", to_write=False)
    with pytest.raises(StorageError, match=r"cannot write s3://data/x: ACCESS_DENIED"):
        check_store("s3://data/x", to_write=True)


def test_a_file_may_be_read_where_nothing_may_be_listed(proxy, s3, monkeypatch):
    s3.put_object(Bucket="data", Key="public/a.csv", Body=b"1,2,3")
    monkeypatch.setattr(proxy, "verdict", lambda kind: DENIED if kind == "LIST" else None)
    check_store("s3://data/public/a.csv", to_write=False)
    for path, to_write in (("public/b.csv", False), ("public/a.csv", True)):
        with pytest.raises(RecrayError, match="ACCESS_DENIED"):
            check_store(f"s3://data/{path}", to_write)


@pytest.mark.usefixtures("proxy")
def test_a_bucket_that_is_missing():
    with pytest.raises(StorageError, match="NO_SUCH_BUCKET"):
        check_store("s3://absent/x", to_write=True)
    with pytest.raises(RecrayError, match="there is no such bucket"):
        check_store("s3://absent/x", to_write=False)


def test_a_store_that_does_not_answer_is_given_up_after_few_attempts(proxy):
    proxy.health = "closed"
    with proxy.watch() as traffic, pytest.raises(StorageError, match="does not answer"):
        check_store("s3://data/x", to_write=True)
    assert traffic.count() <= 3


def test_a_store_that_keeps_us_waiting_is_given_up(proxy, monkeypatch):
    monkeypatch.setattr(reach, "CHECK_S", 0.2)
    proxy.health = "silent"
    with pytest.raises(RecrayError, match=r"does not answer: nothing came in 0.2 s"):
        check_store("s3://data/x", to_write=False)


# ------------------------------------------------------------------------------ Google's store


@pytest.fixture
def google():
    """A store that answers every request with one error; its place, and what it answers."""
    answer = {"code": 403, "message": "nobody may list here", "errors": [{"reason": "forbidden"}]}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps({"error": answer}).encode()
            self.send_response(answer["code"])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = f"scheme=http&endpoint_override=127.0.0.1:{server.server_port}"
    yield f"gs://anonymous@bucket/x?{options}", answer
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("to_write", [True, False])
def test_the_reason_is_that_of_googles_store(google, to_write):
    uri, answer = google
    verb = "write" if to_write else "read"
    with pytest.raises(RecrayError, match=rf"cannot {verb} .*PERMISSION_DENIED: nobody may") as one:
        check_store(uri, to_write)
    assert one.value.exit_code == (3 if to_write else 2)
    assert len(str(one.value).splitlines()) == 1
    answer |= {"code": 404, "message": "The specified bucket does not exist."}
    with pytest.raises(RecrayError, match=r"NOT_FOUND: The specified bucket|no such bucket"):
        check_store(uri, to_write)


def test_googles_store_that_cannot_be_reached():
    with pytest.raises(RecrayError, match=r"the store does not answer: .*connect"):
        check_store("gs://anonymous@b/x?scheme=http&endpoint_override=127.0.0.1:9", to_write=False)


def test_googles_store_without_credentials(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")  # nobody gives any there
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with pytest.raises(StorageError, match="no credentials for Google Cloud: run `gcloud") as one:
        check_store("gs://bucket/x", to_write=True)
    assert len(str(one.value).splitlines()) == 1


# ------------------------------------------------------------------------------ and good ones


def test_a_good_store_is_left_as_it_was(proxy):
    with proxy.watch() as traffic:
        check_store("s3://data/reach", to_write=True)
    # pyarrow asks before it deletes, and leaves an empty object for the folder.
    kinds = [request.kind for request in traffic.requests]
    assert kinds == ["LIST", "PUT", "HEAD", "DELETE", "PUT"]
    assert Folder("s3://data/reach").files() == []


def test_a_disk_is_not_asked(tmp_path):
    check_store(str(tmp_path / "absent"), to_write=True)


def test_what_will_not_change_is_not_asked_again(proxy):
    for refusal in (MOVED, EXPIRED, DENIED):
        proxy.refusal = refusal
        with proxy.watch() as traffic, pytest.raises(StorageError):
            Folder("s3://data/x").write_bytes("a", b"x")
        assert traffic.count() <= 2
    assert not is_permanent(OSError("AWS Error SLOW_DOWN during PutObject operation: slower"))


def test_other_errors_keep_their_words():
    assert reason_of(OSError("no space left")) == "no space left"


def test_the_number_of_a_request_is_no_part_of_a_reason():
    said = (
        "When listing objects: AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation: The "
        "specified bucket does not exist (Request ID: QNWSq3jGAVAu)"
    )
    assert reason_of(OSError(said)) == (
        "NO_SUCH_BUCKET: The specified bucket does not exist (ListObjectsV2)"
    )


@pytest.mark.parametrize("path", ["s3://data//x", "s3://data/x//y/"])
def test_an_address_with_an_empty_part_is_refused(path):
    with pytest.raises(RecrayError, match="a part between two slashes is empty"):
        Folder(path)
