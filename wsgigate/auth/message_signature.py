"""HTTP message signatures (RFC 9421): who may sign, and what a signature must cover.

A signature covers what it lists, and nothing else: one over the date alone is valid for every
request. So the rules here decide first whether a signature means anything, from its parameters and
the list of what it covers, and only then is it verified, over the request as it is forwarded:

- The key is one of the configuration, by ``keyid``, and has one algorithm. What the message says
  about its algorithm can only contradict.
- Method, scheme, host, path and query are covered, and the digest of the body if there is one.
- What is covered reaches the service: a covered field that ``Connection`` removes is an error.
- Exactly one signature is by a known key (and has the expected tag): there is one caller.
- Every member, parameter and label occurs once, and none is unknown.

The library http-message-signatures parses the fields, makes the signature base and verifies it. It
gets one signature at a time, with the key that belongs to it, so its own choice among several, its
clock and its defaults have no effect. Replay, the digest of the body, and the limits are ours.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from hashlib import sha256, sha512
from hmac import compare_digest
from importlib.util import find_spec
from typing import Annotated, Any, NamedTuple, cast

from wsgigate.auth.challenge import checked_scopes
from wsgigate.auth.identity import Identity
from wsgigate.auth.jwk import Jwk, KeyText, configured_keys, fits, kind_of, public_key_of, secret_of
from wsgigate.http.bodies import shown
from wsgigate.http.client_url import ClientUrl
from wsgigate.http.fields import HOP_BY_HOP, is_token
from wsgigate.rules.arguments import OneOf, Pattern, Trait, checked

__all__ = [
    "ALGORITHMS",
    "LONGEST_FIELD",
    "ReceivedSignature",
    "SignatureRejected",
    "SignatureRules",
    "Signer",
    "SignerKey",
    "check_digest",
    "check_installed",
    "digests_of",
]

_BY_JOSE = {
    "HS256": "hmac-sha256",
    "RS256": "rsa-v1_5-sha256",
    "PS512": "rsa-pss-sha512",
    "ES256": "ecdsa-p256-sha256",
    "ES384": "ecdsa-p384-sha384",
    "EdDSA": "ed25519",
}
"""The algorithms of RFC 9421 section 6.2 by the name of the same algorithm in JSON Web Keys."""

ALGORITHMS = tuple(_BY_JOSE.values())

LONGEST_FIELD = 4096
"""Maximum length of ``Signature-Input`` and of ``Signature``, in characters."""

# Parsing an item takes microseconds, and anyone can send a field that is full of them.
_MOST_ITEMS = 160
_ITEMS = str.maketrans("", "", " ;,")
_MEMBER = r"[a-z*][a-z0-9_.*-]*=:[A-Za-z0-9+/=]*:"
_SIGNATURES = re.compile(rf" *{_MEMBER}(?:[ \t]*,[ \t]*{_MEMBER})* *")

_MOST_SIGNATURES = 8
_MOST_COMPONENTS = 64
_LONGEST_NONCE = 256
_LATEST = 2**40

_PARAMETERS = frozenset(("alg", "created", "expires", "keyid", "nonce", "tag"))

_REQUEST = frozenset(
    (
        *("@method", "@authority", "@scheme", "@target-uri", "@request-target", "@path"),
        *("@query", "@query-param"),
    )
)
"""The derived components of a request (RFC 9421 section 2.2)."""

_KEY_ID = r"[ !\x23-\x5b\x5d-\x7e]{1,256}"


class SignatureRejected(Exception):
    """The signature is invalid; the message is for the operator only."""


def check_installed() -> None:
    """Check that http-message-signatures is installed.

    :raises ValueError: It is not; the message says how to install it.
    """
    if find_spec("http_message_signatures") is None:
        raise ValueError(_NEEDED)


_NEEDED = 'message signatures need http-message-signatures 3: pip install "wsgigate[signatures]"'


class SignerKey(NamedTuple):
    """A key that verifies signatures.

    :ivar id: Its ``keyid``.
    :ivar algorithm: Its algorithm, one of :data:`ALGORITHMS`.
    :ivar key: The key as the library takes it.
    :ivar identity: The caller who signs with it.
    """

    id: str
    algorithm: str
    key: Any
    identity: Identity


@checked
class Signer:
    """A caller who signs requests, and its keys.

    :param subject: The caller, the ``subject`` of its identity.
    :param id: The ``keyid`` of the key. Required unless *jwks* has a ``kid`` for each key.
    :param algorithm: The algorithm of the key, which signatures cannot choose. Default: the one
        that fits the key. An RSA key needs it, ``"rsa-pss-sha512"`` or ``"rsa-v1_5-sha256"``.
    :param secret: A shared secret of at least 32 bytes, for ``"hmac-sha256"``.
    :param public_key: A public key or a certificate as PEM text.
    :param jwks: A JWK or JWK set, as text or as a table, instead of these. Several keys are for
        their rotation.
    :param scopes: What the caller may do.
    :raises ValueError: An argument is invalid, or a key is missing, weak or of the wrong type; the
        message names it.
    :ivar keys: The keys.
    """

    def __init__(
        self,
        *,
        subject: str,
        id: Annotated[str, Pattern(_KEY_ID, "a key id of printable ASCII")] | None = None,
        algorithm: Annotated[str, OneOf(ALGORITHMS)] | None = None,
        secret: Annotated[KeyText, Trait.SECRET] | None = None,
        public_key: KeyText | None = None,
        jwks: str | Mapping[str, Any] | None = None,
        scopes: Sequence[str] = (),
    ) -> None:
        if not isinstance(subject, str) or not subject or not subject.isprintable():
            raise ValueError(f"subject: a printable text, not {subject!r}")
        if id is not None and not (
            0 < len(id) <= 256 and id.isascii() and id.isprintable() and not {'"', "\\"} & set(id)
        ):
            raise ValueError(f"id: up to 256 printable ASCII characters, not {id!r}")
        if algorithm is not None and algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm: {algorithm!r} is not one of {', '.join(ALGORITHMS)}")
        given = {"secret": secret, "public_key": public_key, "jwks": jwks}
        names = [name for name, value in given.items() if value is not None]
        if len(names) != 1:
            what = f"not {' and '.join(names)}" if names else "which is missing"
            raise ValueError(f"{names[-1] if names else 'public_key'}: one of {_WAYS}, {what}")
        allowed = checked_scopes(scopes)
        self.keys = [
            SignerKey(
                key_id,
                name,
                key,
                Identity(
                    subject,
                    "signature",
                    client=key_id,
                    claims={"sub": subject, "key_id": key_id},
                    scopes=allowed,
                ),
            )
            for key_id, name, key in _keys_of(id, algorithm, secret, public_key, jwks)
        ]


_WAYS = "secret, public_key and jwks"


def _keys_of(
    key_id: str | None,
    algorithm: str | None,
    secret: KeyText | None,
    public_key: KeyText | None,
    jwks: str | Jwk | None,
) -> list[tuple[str, str, Any]]:
    """Return the id, the algorithm and the key of each key that is given."""
    if jwks is not None:
        symmetric = algorithm == "hmac-sha256"
        found = configured_keys(jwks, ["HS256"] if symmetric else None)
        keys = [(key.kid or key_id, key.algorithms, key.key) for key in found]
        if key_id is not None and (len(keys) > 1 or keys[0][0] != key_id):
            raise ValueError("id: the keys in jwks have ids (kid) of their own")
    elif secret is not None:
        keys = [(key_id, frozenset({"HS256"}), secret_of("HS256", secret))]
    else:
        from_pem = public_key_of(cast("KeyText", public_key))
        fitting = frozenset(name for name in _BY_JOSE if fits(name, from_pem))
        keys = [(key_id, fitting, from_pem)]
    made = []
    for each_id, jose, key in keys:
        if each_id is None:
            raise ValueError("id: required, as signatures name their key by it (keyid)")
        possible = [_BY_JOSE[name] for name in sorted(jose) if name in _BY_JOSE]
        if algorithm is not None:
            possible = [name for name in possible if name == algorithm]
            if not possible:
                raise ValueError(f"algorithm: {kind_of(key)} does not fit {algorithm}")
        if not possible:
            raise ValueError(f"public_key: no algorithm fits {kind_of(key)}")
        if len(possible) > 1:
            raise ValueError(f"algorithm: required for {kind_of(key)}: {' or '.join(possible)}")
        made.append((each_id, possible[0], key))
    return made


class ReceivedSignature(NamedTuple):
    """A signature that is acceptable if it verifies.

    :ivar key: The key that it must be by.
    :ivar fields: The names of the fields that it covers.
    :ivar nonce: Its nonce.
    :ivar seconds: The time for which it stays acceptable.
    :ivar covers_digest: Whether it covers ``Content-Digest``.
    :ivar input: ``Signature-Input`` with this signature alone.
    :ivar signature: ``Signature`` with this signature alone.
    """

    key: SignerKey
    fields: frozenset[str]
    nonce: str | None
    seconds: float
    covers_digest: bool
    input: str
    signature: str


class SignatureRules:
    """What a signature must be like to be accepted.

    :param signers: The callers and their keys.
    :param tag: The ``tag`` of the signatures that are meant; others are ignored. Default: those
        with any or none.
    :param components: Further components that must be covered.
    :param max_age: Maximum time since a signature was made (``created``), in seconds.
    :param leeway: Allowed difference of the clocks, in seconds.
    :param require_nonce: Whether a signature must have a nonce.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        signers: Sequence[Signer],
        *,
        tag: str | None = None,
        components: Sequence[str] = (),
        max_age: float = 60.0,
        leeway: float = 5.0,
        require_nonce: bool = False,
    ) -> None:
        self._keys: dict[str, SignerKey] = {}
        for number, signer in enumerate(signers):
            for key in signer.keys:
                if key.id in self._keys:
                    raise ValueError(f"signers[{number}].id: {key.id!r} is the id of another key")
                self._keys[key.id] = key
        if not self._keys:
            raise ValueError("signers: at least one is required")
        if tag is not None and not (tag and tag.isascii() and tag.isprintable()):
            raise ValueError(f"tag: printable ASCII, not {tag!r}")
        for name in components:
            if name not in _REQUEST and not (is_token(name) and name == name.lower()):
                raise ValueError(
                    f'components: a field in lower case or a derived component such as "@query", '
                    f"not {name!r}"
                )
        if not 1 <= max_age <= 86_400:
            raise ValueError(f"max_age: 1 to 86400 seconds, not {max_age!r}")
        if not 0 <= leeway <= 300:
            raise ValueError(f"leeway: 0 to 300 seconds, not {leeway!r}")
        self._library = _library()  # now, and not at the first request of each worker
        self._tag = tag
        self._components = frozenset(components)
        self._max_age = max_age
        self._leeway = leeway
        self._requires_nonce = require_nonce

    @property
    def accepted(self) -> str:
        """The signature that a request needs, for ``Accept-Signature`` (RFC 9421 section 5)."""
        names = ["@method", "@target-uri", "content-digest", *sorted(self._components)]
        listed = " ".join(f'"{name}"' for name in dict.fromkeys(names))
        nonce = ";nonce" if self._requires_nonce else ""
        tag = "" if self._tag is None else f';tag="{_escaped(self._tag)}"'
        return f"sig=({listed});created;keyid{nonce}{tag}"

    def candidate(
        self, input_field: str, signature_field: str, *, has_body: bool, now: float
    ) -> ReceivedSignature:
        """Return the one signature that counts.

        :param input_field: The ``Signature-Input`` field.
        :param signature_field: The ``Signature`` field.
        :param has_body: Whether the request has a body.
        :param now: Unix time in seconds.
        :raises SignatureRejected: There is none, or it does not mean enough.
        """
        inputs = _dictionary("Signature-Input", input_field)
        if len(signature_field) <= LONGEST_FIELD and not _SIGNATURES.fullmatch(signature_field):
            raise SignatureRejected("Signature is not a list of byte sequences")
        signatures = _dictionary("Signature", signature_field)
        if len(inputs) > _MOST_SIGNATURES:
            raise SignatureRejected(f"{len(inputs)} signatures; at most {_MOST_SIGNATURES}")
        if inputs.keys() != signatures.keys():
            raise SignatureRejected("Signature-Input and Signature have different labels")
        found: list[tuple[str, SignerKey]] = []
        for label, (components, parameters) in inputs.items():
            if not isinstance(components, list):
                raise SignatureRejected(f"{label} is not a list of components")
            if self._tag is not None and parameters.get("tag") != self._tag:
                continue
            key_id = parameters.get("keyid")
            if type(key_id) is str and key_id in self._keys:
                found.append((label, self._keys[key_id]))
        if not found:
            raise SignatureRejected("no signature by a known key" + self._with_tag)
        if len(found) > 1:
            raise SignatureRejected("signatures by several known keys" + self._with_tag)
        label, key = found[0]
        components, parameters = inputs[label]
        seconds = self._seconds(parameters, key, now)
        covered = self._covered(components, has_body)
        return ReceivedSignature(
            key,
            frozenset(name for name in covered if not name.startswith("@")),
            parameters.get("nonce"),
            seconds,
            "content-digest" in covered,  # as a whole, or one digest of it
            _serialized({label: inputs[label]}),
            _serialized({label: signatures[label]}),
        )

    @property
    def _with_tag(self) -> str:
        return "" if self._tag is None else f" with the tag {self._tag!r}"

    def _seconds(self, parameters: Mapping[str, Any], key: SignerKey, now: float) -> float:
        """Return the time for which a signature with these parameters stays acceptable."""
        unknown = parameters.keys() - _PARAMETERS
        if unknown:
            raise SignatureRejected(f"the unknown parameter {shown(min(unknown))}")
        for name in ("alg", "nonce", "tag"):
            if name in parameters and type(parameters[name]) is not str:
                raise SignatureRejected(f"{name} is not a text")
        if parameters.get("alg", key.algorithm) != key.algorithm:
            raise SignatureRejected(
                f"alg is {shown(parameters['alg'])}, and the key is for {key.algorithm}"
            )
        nonce = parameters.get("nonce", "")
        if len(nonce) > _LONGEST_NONCE or (self._requires_nonce and not nonce):
            raise SignatureRejected(f"the nonce has {len(nonce)} characters")
        created = _moment(parameters, "created")
        if created is None:
            raise SignatureRejected("it does not say when it was created")
        if created - self._leeway > now:
            raise SignatureRejected(f"created {created - now:.0f} s in the future")
        until = created + self._max_age + self._leeway
        expires = _moment(parameters, "expires")
        if expires is not None:
            until = min(until, expires + self._leeway)
        if now >= until:
            raise SignatureRejected(f"created {now - created:.0f} s ago, or expired")
        return until - now

    def _covered(self, components: Sequence[Any], has_body: bool) -> set[str]:
        """Return the names of the components that are covered as a whole.

        :raises SignatureRejected: They do not cover enough.
        """
        if len(components) > _MOST_COMPONENTS:
            raise SignatureRejected(f"{len(components)} components; at most {_MOST_COMPONENTS}")
        whole, fields = set(), set()
        for component in components:
            if not (isinstance(component, tuple) and type(component[0]) is str):
                raise SignatureRejected("a component that is not a text")
            name, parameters = component
            if name.startswith("@"):
                if name not in _REQUEST:
                    raise SignatureRejected(f"the unknown component {shown(name)}")
            elif not is_token(name) or name != name.lower():
                raise SignatureRejected(f"the field {shown(name)} is not in lower case")
            elif "_" in name:  # behind WSGI, x_user and x-user are the same field
                raise SignatureRejected(f"the field {shown(name)} has an underscore")
            elif name in HOP_BY_HOP or name in ("signature", "signature-input"):
                raise SignatureRejected(f"the field {name} cannot be covered")
            else:
                fields.add(name)
            # A part of a field is authentic then, and the rest of it is not.
            if not parameters or parameters.keys() == {"sf"}:
                whole.add(name)
        has = whole.__contains__
        missing = [
            what
            for what, is_covered in (
                ("@method", has("@method")),
                ("@authority", has("@authority") or has("@target-uri")),
                ("@target-uri (or @scheme, @path and @query)", self._covers_target(whole)),
                ("content-digest", has("content-digest") or not has_body),
                *((name, has(name)) for name in sorted(self._components)),
            )
            if not is_covered
        ]
        if missing:
            raise SignatureRejected(f"it does not cover {', '.join(missing)}")
        return whole | fields

    def _covers_target(self, covered: set[str]) -> bool:
        return (
            "@target-uri" in covered
            or {"@scheme", "@request-target"} <= covered
            or {"@scheme", "@path", "@query"} <= covered
        )

    def verify(
        self, found: ReceivedSignature, method: str, url: ClientUrl, fields: Mapping[str, str]
    ) -> bytes:
        """Verify a signature; return the SHA-256 hash of what was signed.

        :param method: The method of the request.
        :param url: Its URL as the client knows it.
        :param fields: The values of the fields that the signature covers, by name in lower case.
        :raises SignatureRejected: The signature does not match.
        """
        message = _Message(method, url, {**fields, "Signature-Input": found.input})
        message.headers["Signature"] = found.signature
        verifier = self._library.verifier(found.key)
        try:
            (result,) = verifier.verify(message, max_age=None)
        except self._library.errors as error:
            made_for = f"it is not for {method} {shown(url.without_query)}, or not by the key"
            why = shown(str(error)) if str(error) else made_for
            raise SignatureRejected(f"it does not verify: {why}") from None
        base = "\n".join(f"{name}: {value}" for name, value in result.covered_components.items())
        return sha256(base.encode("ascii")).digest()


class _Message:
    """A request as the library reads it."""

    def __init__(self, method: str, url: ClientUrl, headers: dict[str, str]) -> None:
        self.method = method
        self.url = "http://in.valid/"  # see the resolver
        self.client_url = url
        self.request_target = url.path if url.query is None else f"{url.path}?{url.query}"
        self.headers = headers


class _Library(NamedTuple):
    parse: Callable[..., Any]
    serialize: Callable[[Any], str]
    verifier: Callable[[SignerKey], Any]
    errors: tuple[type[Exception], ...]


@cache
def _library() -> _Library:
    """Return what is used of the library, which is optional.

    :raises ValueError: It is too old.
    """
    try:
        import http_sf
        from http_message_signatures import (
            HTTPMessageSignaturesException,
            HTTPMessageVerifier,
            HTTPSignatureComponentResolver,
            MappingKeyResolver,
            algorithms,
        )
    except ImportError as error:
        raise ValueError(f"{_NEEDED} ({error})") from error

    class ComponentResolver(HTTPSignatureComponentResolver):
        """Takes the parts of the URL as they are: queries may have characters such as ``[``."""

        def __init__(self, message: _Message) -> None:
            super().__init__(message)  # type: ignore[no-untyped-call]
            url = message.client_url
            host, colon, port = url.authority.rpartition(":")
            if not colon or url.authority.endswith("]"):
                host, port = url.authority, ""
            self.url_parts = dataclasses.replace(
                self.url_parts,
                scheme=url.scheme,
                host=host,
                port=port or None,
                path=url.path,
                query=url.query,
            )

    class Verifier(HTTPMessageVerifier):
        def validate_created_and_expires(self, sig_input: Any, max_age: Any = None) -> None:
            """Do nothing: the times are checked before, by the clock of the caller."""

    kinds = {
        kind.algorithm_id: kind
        for kind in (
            algorithms.HMAC_SHA256,
            algorithms.RSA_V1_5_SHA256,
            algorithms.RSA_PSS_SHA512,
            algorithms.ECDSA_P256_SHA256,
            algorithms.ECDSA_P384_SHA384,
            algorithms.ED25519,
        )
    }

    def verifier(key: SignerKey) -> Any:
        return Verifier(
            signature_algorithm=kinds[key.algorithm],
            key_resolver=MappingKeyResolver(public_keys={key.id: key.key}, private_keys={}),
            component_resolver_class=ComponentResolver,
        )

    return _Library(
        http_sf.parse, http_sf.ser, verifier, (HTTPMessageSignaturesException, ValueError)
    )


def _dictionary(name: str, value: str) -> dict[str, Any]:
    """Return the members of a Dictionary (RFC 9651), each with its parameters."""
    if len(value) > LONGEST_FIELD:
        raise SignatureRejected(f"{name} has {len(value)} characters")
    if len(value) - len(value.translate(_ITEMS)) > _MOST_ITEMS:
        raise SignatureRejected(f"{name} has more than {_MOST_ITEMS} items")
    try:
        return cast(
            "dict[str, Any]",
            _library().parse(
                value.encode("ascii"), tltype="dictionary", on_duplicate_key=_reject_duplicate
            ),
        )
    except (ValueError, IndexError, OverflowError) as error:
        raise SignatureRejected(f"{name} is malformed: {shown(str(error))}") from None


def _reject_duplicate(name: str, context: str) -> None:
    raise SignatureRejected(f"the {context} {shown(name)} occurs twice")


def _serialized(members: dict[str, Any]) -> str:
    try:
        return _library().serialize(members)
    except (ValueError, TypeError) as error:
        raise SignatureRejected(f"it cannot be written again: {shown(str(error))}") from None


def _moment(parameters: Mapping[str, Any], name: str) -> int | None:
    if name not in parameters:
        return None
    value = parameters[name]
    if type(value) is not int or not 0 <= value <= _LATEST:
        raise SignatureRejected(f"{name} is {shown(value)}, not a time")
    return value


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


# The digest of the body (RFC 9530).

_DIGESTS = {"sha-256": sha256, "sha-512": sha512}


def digests_of(field: str) -> dict[str, bytes]:
    """Return the digests in a ``Content-Digest`` field by algorithm, at least one.

    Those of other algorithms are ignored, as RFC 9530 section 2 has it.

    :raises SignatureRejected: The field is malformed, or has no digest by a secure algorithm.
    """
    members = _dictionary("Content-Digest", field)
    found = {}
    for name, member in members.items():
        if name in _DIGESTS:
            if not isinstance(member[0], bytes):
                raise SignatureRejected(f"the digest by {name} is not a sequence of bytes")
            found[name] = member[0]
    if not found:
        raise SignatureRejected("Content-Digest has neither sha-256 nor sha-512")
    return found


def check_digest(digests: Mapping[str, bytes], blocks: Callable[[], bytes]) -> None:
    """Check that a body has all of *digests*.

    :param blocks: Returns the next part of the body, empty at its end.
    :raises SignatureRejected: It has another.
    """
    hashes = {name: _DIGESTS[name]() for name in digests}
    while block := blocks():
        for each in hashes.values():
            each.update(block)
    for name, digest in digests.items():
        if not compare_digest(hashes[name].digest(), digest):
            raise SignatureRejected(f"the body has another digest by {name}")
