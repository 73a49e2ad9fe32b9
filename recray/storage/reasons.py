"""Why a store refuses: its own words, and whether it is of any use to ask again."""

import re

_OF_AWS = re.compile(
    r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during (\w+) operation: (.*)", re.S
)
_OF_GOOGLE = re.compile(
    r"google::cloud::Status\((\w+): (.*?)(?: error_info=.*)?\)(?:\. Detail: .*)?$", re.S
)
_EXHAUSTED = re.compile(r"^(?:Retry policy exhausted|Permanent error), with a last message of ")
_REQUEST_ID = re.compile(r" \(Request ID: [^)]*\)")
_OWN_CODE = re.compile(r"Unable to parse ExceptionName: (\w+) Message: (.*)", re.S)
_PERMANENT = (
    *"ACCESS_DENIED NO_SUCH_BUCKET allow_bucket_creation INVALID_ACCESS_KEY".split(),
    *"SIGNATURE_DOES_NOT_MATCH PermanentRedirect AuthorizationHeaderMalformed".split(),
    *"ExpiredToken InvalidToken".split(),
    *"INVALID_CLIENT_TOKEN_ID UNRECOGNIZED_CLIENT".split(),
    "HTTP status 301",  # the answer to a HEAD does not say more
    "HTTP status 400",
    "HTTP status 403",
)
_REMEDIES = {
    "AuthorizationHeaderMalformed": "set AWS_DEFAULT_REGION to the bucket's region",
    "ExpiredToken": "renew the credentials",
    "PermanentRedirect": "set AWS_DEFAULT_REGION to the bucket's region",
}


def reason_of(error: BaseException) -> str:
    """What an error says, in the store's own words where pyarrow wraps them in its own."""
    text = str(error)
    google = _OF_GOOGLE.search(text)
    if google is not None:
        return _of_google(*google.groups())
    found = _OF_AWS.search(text)
    if found is None:
        return text
    code, status, operation, said = found.groups()
    own = _OWN_CODE.match(said)
    if own is not None:
        code, said = own.groups()
    elif status is not None:
        code = f"HTTP status {status}"
    if code == "NETWORK_CONNECTION":
        return f"the store does not answer: {said.rpartition('Details: ')[2].strip()}"
    remedy = f"; {_REMEDIES[code]}" if code in _REMEDIES else ""
    plain = _REQUEST_ID.sub("", said).strip().rstrip(".")
    return f"{code}: {plain} ({operation}){remedy}"


def _of_google(code: str, said: str) -> str:
    said = _EXHAUSTED.sub("", said)
    if "OAuth2 access token" in said:
        return (
            "no credentials for Google Cloud: run `gcloud auth application-default login`, or set "
            f"GOOGLE_APPLICATION_CREDENTIALS ({said.rpartition(' - ')[2]})"
        )
    if "CURL error" in said:
        return f"the store does not answer: {said.rpartition(' - ')[2]}"
    return f"{code}: {said}"


def is_permanent(error: BaseException) -> bool:
    """Whether the store would say the same again."""
    return any(word in str(error) for word in _PERMANENT)
