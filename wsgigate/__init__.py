"""API gateway and service registry as a stack of WSGI middlewares.

The public names are imported on first use: an application that uses one middleware imports neither
the proxy nor its dependencies. The block below is their only list; :mod:`wsgigate.lazy` reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsgigate import lazy

__version__ = "0.1.0"

_SOURCE = lazy.source(globals())

if TYPE_CHECKING or _SOURCE is None:
    from wsgigate.auth.authorization import AuthorizationRule as AuthorizationRule
    from wsgigate.auth.identity import Identity as Identity
    from wsgigate.auth.internal_token import InternalTokens as InternalTokens
    from wsgigate.auth.message_signature import Signer as Signer
    from wsgigate.auth.resource import ProtectedResource as ProtectedResource
    from wsgigate.config.build import load as load
    from wsgigate.coordination.api_keys import ApiKeys as ApiKeys
    from wsgigate.coordination.denylist import DenyList as DenyList
    from wsgigate.coordination.maintenance import MaintenanceSwitch as MaintenanceSwitch
    from wsgigate.discovery import Instance as Instance
    from wsgigate.gateway import Gateway as Gateway
    from wsgigate.http.fields import FieldRules as FieldRules
    from wsgigate.http.problem import Problem as Problem
    from wsgigate.middleware.all_of import AllOf as AllOf
    from wsgigate.middleware.any_of import AnyOf as AnyOf
    from wsgigate.middleware.api_key import ApiKeyAuthenticator as ApiKeyAuthenticator
    from wsgigate.middleware.authenticator import Authenticator as Authenticator
    from wsgigate.middleware.authorizer import Authorizer as Authorizer
    from wsgigate.middleware.basic import BasicAuthenticator as BasicAuthenticator
    from wsgigate.middleware.body_limit import BodyLimit as BodyLimit
    from wsgigate.middleware.breaker import Breaker as Breaker
    from wsgigate.middleware.client_address import ClientAddress as ClientAddress
    from wsgigate.middleware.client_certificate import ClientCertificate as ClientCertificate
    from wsgigate.middleware.concurrency import ConcurrencyLimiter as ConcurrencyLimiter
    from wsgigate.middleware.cors import Cors as Cors
    from wsgigate.middleware.fallback import Fallback as Fallback
    from wsgigate.middleware.faults import FaultRules as FaultRules
    from wsgigate.middleware.faults import Faults as Faults
    from wsgigate.middleware.forward_auth import ForwardAuth as ForwardAuth
    from wsgigate.middleware.guard import Guard as Guard
    from wsgigate.middleware.introspection import (
        IntrospectionAuthenticator as IntrospectionAuthenticator,
    )
    from wsgigate.middleware.limiter import Limiter as Limiter
    from wsgigate.middleware.logger import Logger as Logger
    from wsgigate.middleware.maintenance import Maintenance as Maintenance
    from wsgigate.middleware.message_signature import (
        SignatureAuthenticator as SignatureAuthenticator,
    )
    from wsgigate.middleware.metrics import Metrics as Metrics
    from wsgigate.middleware.mirror import Mirror as Mirror
    from wsgigate.middleware.published_keys import PublishedKeys as PublishedKeys
    from wsgigate.middleware.request_id import RequestId as RequestId
    from wsgigate.middleware.request_id import RequestIdFilter as RequestIdFilter
    from wsgigate.middleware.resource_metadata import ResourceMetadata as ResourceMetadata
    from wsgigate.middleware.shedder import Shedder as Shedder
    from wsgigate.middleware.shedder import SheddingRules as SheddingRules
    from wsgigate.middleware.splitter import Splitter as Splitter
    from wsgigate.middleware.stale import StaleAnswers as StaleAnswers
    from wsgigate.middleware.tracing import Tracing as Tracing
    from wsgigate.middleware.webhooks import WebhookVerifier as WebhookVerifier
    from wsgigate.proxy.attempts import Resilience as Resilience
    from wsgigate.proxy.bulkhead import Bulkhead as Bulkhead
    from wsgigate.proxy.bulkhead import ThreadShareRules as ThreadShareRules
    from wsgigate.proxy.bulkhead import ThreadShares as ThreadShares
    from wsgigate.proxy.dispatcher import Dispatcher as Dispatcher
    from wsgigate.proxy.forwarder import Forwarder as Forwarder
    from wsgigate.proxy.pool import Pool as Pool
    from wsgigate.proxy.sticky import Stickiness as Stickiness
    from wsgigate.proxy.websocket import WebSocketLimits as WebSocketLimits
    from wsgigate.registration import Registration as Registration
    from wsgigate.rules.circuit import CircuitRules as CircuitRules
    from wsgigate.rules.fallback import FallbackRules as FallbackRules
    from wsgigate.rules.outlier import OutlierRules as OutlierRules
    from wsgigate.rules.quota import Quota as Quota
    from wsgigate.rules.retry import HedgeRules as HedgeRules
    from wsgigate.rules.retry import RetryRules as RetryRules
    from wsgigate.rules.routing import Route as Route
    from wsgigate.store import Store as Store
    from wsgigate.store.lmdb import LmdbStore as LmdbStore
    from wsgigate.store.memory import MemoryStore as MemoryStore
    from wsgigate.store.open import open_store as open_store
    from wsgigate.store.redis import RedisStore as RedisStore
else:
    __getattr__, __dir__ = lazy.attach(globals(), _SOURCE)
