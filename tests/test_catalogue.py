"""Which test holds what, of the attacks and faults on limits, stores and the control plane.

The ids are those of a catalogue of attacks and faults. Each has tests, or a reason why it needs
none here; a test that is renamed or removed is missed.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "wsgigate"

ATTACKS = "middleware/test_attacks_on_limits.py"
QUOTAS = "middleware/test_limiter_quotas.py"
BOUNDS = "middleware/test_limiter_bounds.py"
RULES = "rules/test_algorithms.py"
FAULTS = "store/redis/test_faults.py"
REDIS = "store/redis/test_redis.py"
KILLED = "store/test_lmdb_killed.py"
DISK = "store/test_lmdb_full_disk.py"
VERIFY = "store/test_lmdb_verify.py"
LMDB = "store/test_lmdb.py"
HEALTH = "discovery/test_health.py"
LEADER = "discovery/test_health_leader.py"
ACCESS = "admin/test_access.py"
DENIAL = "admin/test_denial.py"
ENDPOINTS = "admin/test_endpoints.py"

COVERED: dict[str, list[str]] = {
    # rate limiting
    "K01": [f"{ATTACKS}::test_k01_what_an_untrusted_peer_calls_itself_is_no_new_quota"],
    "K02": [f"{ATTACKS}::test_k02_a_network_of_ipv6_is_one_caller"],
    "K03": [f"{ATTACKS}::test_k03_an_address_written_as_ipv6_is_the_same_caller"],
    "K04": [f"{ATTACKS}::test_k04_a_route_is_one_however_its_path_is_written"],
    "K05": [
        f"{BOUNDS}::test_a_flood_of_callers_fills_no_more_memory_than_the_store_may_have",
        f"{BOUNDS}::test_a_flood_of_callers_fills_no_more_disk_than_the_store_may_have",
        "store/test_lmdb_bounds.py::test_each_new_caller_costs_a_full_store_one_lookup",
    ],
    "K06": [f"{ATTACKS}::test_k06_whatever_a_client_sends_is_no_name_in_the_store"],
    "K07": [
        "middleware/test_limiter_store.py::"
        "test_processes_and_threads_together_never_let_one_too_many_pass",
        "acceptance/test_redis_gateways.py::test_two_machines_allow_exactly_the_quota",
    ],
    "K08": [
        f"{RULES}::test_a_clock_set_back_never_fills_a_bucket",
        f"{RULES}::test_a_clock_set_back_blocks_a_caller_for_at_most_a_period",
        f"{RULES}::test_a_clock_set_forward_is_no_worse_than_waiting",
    ],
    "K09": [f"{RULES}::test_no_span_of_time_admits_more_than_the_algorithm_allows"],
    "K10": [
        "store/redis/test_users.py::test_a_limiter_follows_on_store_error_while_the_server_is_down",
        f"{FAULTS}::test_a_server_that_hangs_is_waited_for_a_bounded_time_and_is_probed_later",
        f"{FAULTS}::test_a_read_only_replica_is_an_outage",
        f"{FAULTS}::test_a_full_server_is_reported_and_is_no_outage",
        f"{REDIS}::test_a_script_that_the_server_has_lost_is_sent_again",
        "acceptance/test_redis_sentinel.py::test_a_failover_is_followed_when_the_primary_dies",
    ],
    "K11": [f"{FAULTS}::test_a_late_answer_is_not_taken_for_that_of_the_next_command"],
    "K12": [f"{ATTACKS}::test_k12_a_rejection_needs_no_lookup_and_reads_no_body"],
    "K13": [f"{ATTACKS}::test_k13_guessing_tokens_is_limited_before_they_are_looked_at"],
    "K14": [
        f"{ATTACKS}::test_k14_a_request_counts_when_it_is_let_in_whatever_becomes_of_it",
        f"{ATTACKS}::test_k14_a_request_that_fails_has_been_counted",
    ],
    "K15": [f"{ATTACKS}::test_k15_a_limiter_made_anew_goes_on_where_the_last_one_was"],
    "K16": [
        f"{ATTACKS}::test_k16_a_quota_that_cannot_be_is_refused_before_anything_is_served",
        f"{QUOTAS}::test_wrong_settings_are_refused_at_construction",
    ],
    "K17": [
        f"{ATTACKS}::test_k17_a_place_is_free_again_when_the_client_leaves_in_the_middle",
        "middleware/test_concurrency.py::test_the_lease_of_a_collected_response_is_not_renewed",
        "acceptance/test_concurrency.py::"
        "test_the_places_of_a_killed_worker_are_free_after_their_lease_and_no_others",
    ],
    # the shared store
    "P01": [f"{KILLED}::test_a_writer_killed_at_any_moment_has_written_what_it_reported"],
    "P02": [
        "store/test_lmdb_faults.py::"
        "test_a_writer_killed_inside_its_transaction_blocks_no_other_and_writes_nothing"
    ],
    "P03": [
        f"{DISK}::test_a_full_disk_rejects_new_values_and_keeps_the_others",
        f"{DISK}::test_a_limiter_follows_on_store_error_while_the_disk_is_full",
        "store/test_lmdb_faults.py::test_a_folder_that_cannot_be_written_is_rejected",
    ],
    "P04": [
        f"{VERIFY}::test_no_damage_kills_a_process_that_uses_the_file",
        f"{VERIFY}::test_a_check_reports_damage_and_leaves_the_file_unchanged",
        "middleware/test_limiter_store.py::"
        "test_an_unusable_default_store_raises_an_error_with_the_remedy",
    ],
    "P05": ["store/test_lmdb_faults.py::test_an_unusable_folder_is_rejected"],
    "P06": ["test_catalogue.py::test_p06_nothing_is_unpickled_but_by_the_test_suite"],
    "P07": [
        f"{LMDB}::test_the_folder_and_its_files_are_for_their_owner_only",
        "store/test_private_folder.py::test_an_unsafe_runtime_folder_is_not_used",
    ],
    "P08": [
        f"{FAULTS}::test_a_server_that_never_answered_is_paused_as_well",
        f"{FAULTS}::test_a_stopped_server_gets_a_few_calls_and_then_only_probes",
        f"{FAULTS}::test_many_threads_together_wait_for_a_server_that_hangs_no_longer_than_one",
        f"{REDIS}::test_a_call_waits_a_bounded_time_for_a_connection",
    ],
    "P10": [
        f"{REDIS}::test_a_forked_process_has_connections_of_its_own",
        f"{LMDB}::test_forks_of_a_process_that_uses_the_store_can_use_it_as_well",
    ],
    "P11": [
        f"{LMDB}::test_many_processes_that_open_a_new_folder_at_once_agree_on_it",
        f"{HEALTH}::test_of_several_workers_one_checks_and_all_mark_their_pools",
    ],
    "P12": [
        f"{LEADER}::test_a_former_leader_does_not_overwrite_the_result_of_its_successor",
        f"{LEADER}::test_a_result_from_before_a_change_of_leader_is_dropped_even_if_the_worker_leads_again",
    ],
    # the control plane
    "I01": ["config/test_build.py::test_there_are_no_admin_endpoints_without_an_admin_table"],
    "I02": [f"{ENDPOINTS}::test_the_endpoints_are_below_their_prefix_only"],
    "I05": [
        f"{DENIAL}::test_a_page_of_another_site_is_rejected",
        f"{DENIAL}::test_a_body_of_another_type_is_rejected",
        f"{ACCESS}::test_a_page_of_another_origin_is_rejected_even_with_the_token",
        f"{ACCESS}::test_a_page_whose_name_resolves_to_loopback_reaches_nothing",
        f"{ACCESS}::test_a_write_with_a_body_of_another_type_is_rejected",
    ],
    "I06": [f"{ACCESS}::test_every_other_request_gets_the_same_rejection"],
    "I04": [f"{ACCESS}::test_wrong_tokens_are_limited_by_address"],
    "I07": [f"{ACCESS}::test_a_token_in_the_query_is_rejected"],
    "I08": [
        "config/test_masked.py::test_no_secret_is_in_the_document",
        "config/test_masked.py::test_each_key_that_hides_its_text_is_masked",
        "config/test_admin_reads.py::test_no_read_has_a_secret",
    ],
    "I11": [f"{ENDPOINTS}::test_other_methods_are_answered_with_405"],
    "I14": [
        f"{DENIAL}::test_a_body_that_is_too_large_is_not_read",
        f"{DENIAL}::test_an_invalid_member_is_rejected_by_name",
    ],
}

REASONS = {
    "P09": "values carry their own end, by the server's clock: what an old copy brings back has "
    "ended or ends as it would have; counts are those of then, as after any loss",
    "I03": "nothing registers services or routes at run time; the file is the operator's",
    "I09": "there are no metrics whose labels a client could choose",
    "I10": "there is no endpoint for profiling or debugging",
    "I12": "no endpoint changes the configuration; denials only add up, in one step of the store",
    "I13": "the file is no template: ${NAME} of the environment is put in, and nothing evaluated",
}


@lru_cache
def names(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("case", COVERED)
def test_each_named_test_exists(case: str) -> None:
    for place in COVERED[case]:
        file, _, name = place.partition("::")
        assert name in names(file), f"{case}: {place} is gone"


def test_no_case_is_left_out_or_both_held_and_excused() -> None:
    every = {
        f"{kind}{number:02}"
        for kind, last in (("K", 17), ("P", 12), ("I", 14))
        for number in range(1, last + 1)
    }
    assert COVERED.keys() | REASONS.keys() == every
    assert not COVERED.keys() & REASONS.keys()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_p06_nothing_is_unpickled_but_by_the_test_suite(path: Path) -> None:
    if path.is_relative_to(PACKAGE / "testing"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found = {getattr(node, "module", None), *(alias.name for alias in node.names)}
            assert found.isdisjoint({"pickle", "marshal", "shelve", "dill"})
