"""The tests of the REST drivers are worth what they catch: each driver wrong in one way, and the test that says so."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from prefect_gpu.providers.core.catalog import collect, store
from tests import mutants
from tests.conformance import ProviderConformance, Subject
from tests.fakes.lambdalabs import FakeLambda
from tests.fakes.runpod import FakeRunpod
from tests.fakes.tensordock import FakeTensordock
from tests.fakes.vastai import FakeVastai
from tests.fakes.verda import FakeVerda
from tests.fakes.vultr import FakeVultr
from tests.providers import (
    test_lambdalabs,
    test_runpod,
    test_runpod_offers,
    test_runpod_order,
    test_tensordock,
    test_vastai,
    test_vastai_container,
    test_vastai_offers,
    test_vastai_order,
    test_verda,
    test_vultr,
)
from tests.providers.renting import without_waiting

HOME = "prefect_gpu.providers"
MORE_TESTS = (test_runpod_offers, test_runpod_order, test_vastai_container, test_vastai_offers, test_vastai_order)


class Driven(NamedTuple):
    """A driver, the module of its tests, how they name it, and its fake."""

    driver: str
    tests: ModuleType
    name: str
    fake: Callable[[], Any]
    subject: Callable[[Any], Subject]


def subject(
    module: ModuleType, faults: str, make: str, secrets: tuple[str, ...], **more: Any
) -> Callable[[Any], Subject]:
    def made(cloud: Any) -> Subject:
        return Subject(
            provider=getattr(module, make)(cloud),
            secrets=secrets,
            unknown_id=f"instances/{'0' * 8}-0000-4000-8000-{'0' * 12}",
            pass_time=cloud.advance,
            faults=getattr(module, faults)(cloud),
            **more,
        )

    return made


DRIVEN = {
    "lambdalabs": Driven(
        f"{HOME}.lambdalabs.driver:Lambdalabs",
        test_lambdalabs,
        "Lambdalabs",
        lambda: FakeLambda(test_lambdalabs.KEY),
        subject(
            test_lambdalabs, "LambdaFaults", "lambdalabs", (test_lambdalabs.KEY,), requirements=test_lambdalabs.H100
        ),
    ),
    "runpod": Driven(
        f"{HOME}.runpod.driver:Runpod",
        test_runpod,
        "Runpod",
        lambda: FakeRunpod(test_runpod.KEY),
        subject(test_runpod, "RunpodFaults", "runpod", (test_runpod.KEY,), requirements=test_runpod.H100),
    ),
    "tensordock": Driven(
        f"{HOME}.tensordock.driver:Tensordock",
        test_tensordock,
        "Tensordock",
        lambda: FakeTensordock(test_tensordock.TOKEN),
        subject(
            test_tensordock,
            "TensordockFaults",
            "tensordock",
            (test_tensordock.TOKEN,),
            requirements=test_tensordock.H100,
        ),
    ),
    "vastai": Driven(
        f"{HOME}.vastai.driver:Vastai",
        test_vastai,
        "Vastai",
        lambda: FakeVastai(test_vastai.KEY),
        test_vastai.subject,
    ),
    "verda": Driven(
        f"{HOME}.verda.driver:Verda",
        test_verda,
        "Verda",
        lambda: FakeVerda(test_verda.CLIENT, test_verda.SECRET),
        subject(test_verda, "VerdaFaults", "verda", (test_verda.SECRET,)),
    ),
    "vultr": Driven(
        f"{HOME}.vultr:Vultr",
        test_vultr,
        "Vultr",
        lambda: FakeVultr(test_vultr.KEY),
        subject(test_vultr, "VultrFaults", "vultr", (test_vultr.KEY,)),
    ),
}


class Edit(NamedTuple):
    """One line of a driver's source that is wrong, and the test that must fail."""

    provider: str
    module: str
    old: str
    new: str
    test: str


EDITS = [
    Edit("lambdalabs", "words", '"terminated": InstanceState.TERMINATED', '"terminated": InstanceState.FAILED',
         "test_terminate_returns_at_once_and_makes_it_absent"),
    Edit("lambdalabs", "words", '"booting": InstanceState.PROVISIONING', '"booting": InstanceState.RUNNING',
         "test_each_status_is_what_it_means"),
    Edit("lambdalabs", "words", '"preempted": InstanceState.INTERRUPTED', '"preempted": InstanceState.TERMINATED',
         "test_a_machine_that_was_preempted_is_ended_with_its_key"),
    Edit("lambdalabs", "words", '    "instance-operations/launch/insufficient-capacity": errors.NoCapacity,\n', "",
         "test_sold_out_is_no_capacity"),
    Edit("lambdalabs", "words", ', "provider/*")', ")", "test_what_lambda_suggests_is_said_with_the_refusal"),
    Edit("lambdalabs", "driver", "            scopes.must_be_ours(one)\n", "            pass\n",
         "test_what_only_bears_a_name_of_ours_is_reported_and_never_ended"),
    Edit("lambdalabs", "driver", '"ssh_key_names.0")', '"nothing")',
         "test_what_only_bears_a_name_of_ours_is_reported_and_never_ended"),
    Edit("lambdalabs", "driver", "if one not in ended", "if False",
         "test_a_terminate_that_does_not_name_the_machine_is_no_success"),
    Edit("lambdalabs", "driver", "        companions.sweep({one.name for one in found}, KINDS[1:], self._lists)\n", "",
         "test_nothing_is_left_behind"),
    Edit("lambdalabs", "driver", "every_s=EVERY_S, ", "", "test_requests_keep_the_distance_that_lambda_wants"),
    Edit("lambdalabs", "driver", "if limit is None or one.price <= limit", "if True",
         "test_offers_have_today_s_price_and_what_is_free_and_obey_a_limit"),
    Edit("runpod", "words", '("EXITED", "ERROR"), InstanceState.FAILED', '("EXITED", "ERROR"), InstanceState.PROVISIONING',
         "test_each_status_is_what_it_means"),
    Edit("runpod", "words", '"no longer any instances", "instances available",', "", "test_sold_out_is_no_capacity"),
    Edit("runpod", "words", "    problem=problem,\n", "", "test_a_problem_is_told_whole"),
    Edit("runpod", "words", "            raise errors.Unsupported(_HAD_ONCE[name])\n", "            pass\n",
         "test_an_option_that_runpod_had_once_is_unsupported_and_says_why"),
    Edit("runpod", "driver", 'code=refused.code, reach="offer"', 'code=refused.code, reach="provider"',
         "test_an_order_s_refusal_rules_out_what_it_speaks_of"),
    Edit("runpod", "driver", "            scopes.must_be_ours(seen)\n", "            pass\n",
         "test_what_only_bears_a_name_of_ours_is_reported_and_never_ended"),
    Edit("runpod", "driver", "[kind for kind in has if has[kind]]", "[]", "test_what_a_pod_holds_no_more_goes_with_it"),
    Edit("runpod", "driver", "with suppress(errors.InvalidRequest):", "if True:",
         "test_what_a_pod_still_holds_when_it_ends_is_left_over_and_removed_after_it"),
    Edit("runpod", "driver", '{"source": source, **which}', "which",
         "test_the_log_is_read_from_the_pod_s_beginning_and_only_what_its_container_said"),
    Edit("runpod", "driver", "if begun else", "if not begun else",
         "test_the_log_is_read_from_the_pod_s_beginning_and_only_what_its_container_said"),
    Edit("runpod", "driver", "why = container_boot.failure_in(self.read_log(seen))", "pass",
         "test_a_pod_that_ended_is_noticed_at_once_with_the_sentence_in_its_log"),
    Edit("runpod", "driver", 'why = image_trouble_in(self._told(seen, "system"))', "pass",
         "test_an_image_that_never_runs_is_told_by_its_host_s_log_long_before_the_boot_deadline"),
    Edit("runpod", "driver", "if seen.unread:", "if False:", "test_stock_that_cannot_be_read_is_said_and_not_taken_for_none"),
    Edit("runpod", "pods", '{"includeClusterPods": True} if kind == "pods" else {}', "{}",
         "test_a_member_of_a_cluster_is_seen_and_never_ended"),
    Edit("runpod", "pods", ', next_at="nextCursor"', "", "test_all_pages_are_read"),
    Edit("runpod", "pods", 'answers.at(port, "private") != container_boot.PORT or', "", "test_each_status_is_what_it_means"),
    Edit("runpod", "pods", "up_s > WAY_S", "False", "test_a_pod_that_no_public_address_leads_to_is_not_waited_for"),
    Edit("runpod", "pods", "if any(address in network for network in INSIDE):", "if False:",
         "test_a_pod_that_no_public_address_leads_to_is_not_waited_for"),
    Edit("runpod", "order", '"entrypoint": entrypoint, ', "", "test_the_body_of_an_order"),
    Edit("runpod", "order", 'body["dataCenterIds"] = [offer.region]', "pass", "test_the_body_of_an_order"),
    Edit("runpod", "order", "or any(mark in first", "and any(mark in first", "test_credentials_are_shown_to_no_registry_but_theirs"),
    Edit("runpod", "offers", 'and (cloud == "SECURE" or may_be_a_stranger_s)', "",
         "test_the_community_is_not_asked_where_its_hosts_are_not_trusted_enough"),
    Edit("runpod", "offers", "math.ceil(", "int(", "test_a_disk_is_rounded_up_and_a_place_that_is_none_is_not_ordered_from"),
    Edit("runpod", "offers", "price * count +", "price +", "test_so_many_gpus_as_are_asked_for_and_a_machine_can_have"),
    Edit("runpod", "offers", 'in {"LOW", "MEDIUM", "HIGH"}', 'in {"NONE", "LOW", "MEDIUM", "HIGH"}',
         "test_what_is_sold_out_is_shown_with_the_reason"),
    Edit("runpod", "offers", 'trust="secure" if cloud == "SECURE" else "any"', 'trust="secure"',
         "test_offers_are_each_type_in_each_data_center_and_the_community_cloud_with_a_disk"),
    Edit("tensordock", "words", "problem_in_success=problem_in_success", "problem_in_success=None",
         "test_the_fake_itself_refuses_as_it_is_documented"),
    Edit("tensordock", "words", '"stoppeddisassociated": InstanceState.INTERRUPTED', '"stoppeddisassociated": InstanceState.TERMINATED',
         "test_a_gpu_that_its_host_took_back_ends_the_wait_and_the_machine"),
    Edit("tensordock", "words", '"running": InstanceState.RUNNING', '"running": InstanceState.RUNNING, "transmogrifying": InstanceState.RUNNING',
         "test_a_status_never_seen_before_is_unknown"),
    Edit("tensordock", "words", "errors.NoCapacity: (", "errors.RegionClosed: (", "test_sold_out_is_no_capacity"),
    Edit("tensordock", "driver", "port = ports.get(22, None if ports else 22)", "port = 22",
         "test_until_its_scripts_ran_a_machine_shows_another_host_key_and_is_not_ready"),
    Edit("tensordock", "driver", 'KEYS: Final = "/var/lib/prefect-gpu-keys"', 'KEYS: Final = "/etc/ssh"',
         "test_until_its_scripts_ran_a_machine_shows_another_host_key_and_is_not_ready"),
    Edit("tensordock", "driver", 'f"data.attributes.{key}", ', "", "test_a_prefix_finds_its_own_and_nothing_else"),
    Edit("tensordock", "driver", "with suppress(KeyError, TypeError, ValueError, AttributeError):", "if True:",
         "test_a_host_whose_price_or_size_is_not_known_is_not_offered_and_hides_no_other"),
    Edit("tensordock", "offers", "known = [price for price in prices if price is not None]", "known = [price or 0.0 for price in prices]",
         "test_a_host_whose_price_or_size_is_not_known_is_not_offered_and_hides_no_other"),
    Edit("tensordock", "offers", "amounts = (count,", "amounts = (1,",
         "test_an_offer_is_a_share_of_one_host_priced_with_all_that_it_comes_with"),
    Edit("vastai", "words", '"stopped" in (actual, now) or', "", "test_each_status_is_what_it_means"),
    Edit("vastai", "words", 'or (wanted == "stopped" and actual != "running")', "", "test_each_status_is_what_it_means"),
    Edit("vastai", "words", '("exited", "offline", "unknown"), InstanceState.FAILED', '("exited", "offline", "unknown"), InstanceState.PROVISIONING',
         "test_each_status_is_what_it_means"),
    Edit("vastai", "words", 'if actual != "running" and any(', "if any(", "test_each_status_is_what_it_means"),
    Edit("vastai", "words", "0 < int(port) < 65536", "True", "test_each_status_is_what_it_means"),
    Edit("vastai", "words", "statuses={404: errors.Transient},", "", "test_gone_is_said_by_vast_ai_s_own_codes_and_by_no_status"),
    Edit("vastai", "words", 'body.get("new_contract") or body.get("contract_id")', "None",
         "test_a_bid_that_is_refused_and_made_a_contract_all_the_same_is_that_contract"),
    Edit("vastai", "words", "    problem_in_success=problem_in_success,\n", "",
         "test_too_many_requests_are_that_at_each_endpoint_and_nothing_was_done"),
    Edit("vastai", "words", '            "no_such_ask",\n', "", "test_an_order_s_refusal_is_what_it_says_and_rules_out_what_it_speaks_of"),
    Edit("vastai", "words", 'in ("bwu", "bwd")', 'in ("bwu",)',
         "test_bytes_in_both_directions_are_what_vast_ai_has_booked_for_this_contract"),
    Edit("vastai", "driver", 'row.get("source") == f"instance-{number}"', "True",
         "test_bytes_in_both_directions_are_what_vast_ai_has_booked_for_this_contract"),
    Edit("vastai", "driver", 'row = next((one for one in rows if str(one.get("id")) == number), None)', "row = None",
         "test_null_alone_proves_nothing_and_a_list_that_is_late_says_the_contract_is_there"),
    Edit("vastai", "driver", 'if str(one.get("id")) == number), None)', "), None)",
         "test_null_alone_proves_nothing_and_a_list_that_is_late_says_the_contract_is_there"),
    Edit("vastai", "driver", "(0.0, PAGE_S, END_S)", "(0.0, 0.0, 0.0)", "test_each_endpoint_is_asked_no_more_often_than_vast_ai_wants"),
    Edit("vastai", "driver", "            if listed.instances:\n", "            if False:\n", "test_an_ask_that_is_gone_may_be_our_own"),
    Edit("vastai", "driver", "if not listed.is_complete:", "if False:", "test_an_ask_that_is_gone_may_be_our_own"),
    Edit("vastai", "driver", "refused = errors.NoCapacity(refused.message, code=refused.code)", "pass",
         "test_an_order_s_refusal_is_what_it_says_and_rules_out_what_it_speaks_of"),
    Edit("vastai", "driver", 'cursor="after_token", next_at="next_token")\n        )', 'cursor="after_token")\n        )',
         "test_lists_are_read_in_pages_of_25_with_the_prefix_as_a_filter_that_is_checked_again"),
    Edit("vastai", "driver", '"limit": 25', '"limit": 26', "test_lists_are_read_in_pages_of_25_with_the_prefix_as_a_filter_that_is_checked_again"),
    Edit("vastai", "driver", "            scopes.must_be_ours(self.get_instance(instance_id))\n", "",
         "test_what_only_bears_a_name_of_ours_is_reported_and_never_ended"),
    Edit("vastai", "driver", '"filter": "prefect-gpu"', '"filter": ""', "test_the_host_key_is_the_first_that_the_log_tells_and_no_noise_hides_it"),
    Edit("vastai", "driver", '"tail": "1000000"', '"tail": "1000"', "test_the_host_key_is_the_first_that_the_log_tells_and_no_noise_hides_it"),
    Edit("vastai", "order", '        "cancel_unavail": True,', '        "cancel_unavail": not offer.spot,',
         "test_a_bid_is_a_share_over_the_lowest_and_leaves_nothing_that_waits"),
    Edit("vastai", "order", 'body["price"] = offer.raw["bid"]', 'body["price"] = offer.price',
         "test_a_bid_is_a_share_over_the_lowest_and_leaves_nothing_that_waits"),
    Edit("vastai", "order", '"user": "root",', "", "test_the_body_of_an_order"),
    Edit("vastai", "order", "shlex.join(given)", '" ".join(given)', "test_registry_credentials_go_with_the_order_and_into_no_message"),
    Edit("vastai", "order", 'refused.message = refused.message.replace(form, "***")', "pass",
         "test_registry_credentials_go_with_the_order_and_into_no_message"),
    Edit("vastai", "order", "exec 2>/dev/null;", "set -x;",
         "test_a_container_destroys_its_own_contract_with_its_own_key_and_no_word_of_that_stands_in_its_log"),
    Edit("vastai", "order", '\'eval "$PREFECT_GPU_BY_PYTHON"||', "'false||",
         "test_a_container_destroys_its_own_contract_with_its_own_key_and_no_word_of_that_stands_in_its_log"),
    Edit("vastai", "order", "/instances/$CONTAINER_ID/", "/instances/$CONTAINER_ID/x/",
         "test_a_container_destroys_its_own_contract_with_its_own_key_and_no_word_of_that_stands_in_its_log"),
    Edit("vastai", "offers", "not in (CAP, LIMIT)", "not in (LIMIT,)", "test_all_asks_are_found_however_many_there_are"),
    Edit("vastai", "offers", '"gte": dearest', '"gt": dearest + 1', "test_all_asks_are_found_however_many_there_are"),
    Edit("vastai", "offers", '"reliability": {"gte": options.min_reliability},', "", "test_what_is_wanted_is_asked_of_the_api"),
    Edit("vastai", "offers", "< options.min_reliability or count < 1", "< 0 or count < 1", "test_what_the_api_did_not_filter_is_filtered_here"),
    Edit("vastai", "offers", "(1 + options.bid_over)", "1", "test_spot_is_the_lowest_bid_and_some_more"),
    Edit("vastai", "offers", '(float(row["dph_base"]) if bid is None else bid) + storage', '(float(row["dph_base"]) if bid is None else bid)',
         "test_an_offer_is_one_ask_of_one_machine_with_its_disk"),
    Edit("vastai", "offers", "                if page == 0:\n                    raise\n", "",
         "test_a_search_that_is_asked_too_often_keeps_what_is_cheapest_and_one_that_found_nothing_says_so"),
    Edit("vastai", "offers", ' and requirements.trust == "any" else []', " else []",
         "test_hosts_are_as_trusted_as_asked_for_and_unverified_ones_have_to_be_wanted"),
    Edit("vastai", "offers", 'if row.get("hosting_type") == 1 else "verified"', 'if True else "verified"',
         "test_hosts_are_as_trusted_as_asked_for_and_unverified_ones_have_to_be_wanted"),
    Edit("vastai", "offers", 'if row.get("verification") != "verified":', "if False:",
         "test_hosts_are_as_trusted_as_asked_for_and_unverified_ones_have_to_be_wanted"),
    Edit("vastai", "offers", "accelerator.vendor if accelerator else told", "told if told else told",
         "test_a_name_that_vast_ai_may_write_otherwise_is_not_asked_for_and_is_looked_for_among_all"),
    Edit("vastai", "offers", "math.ceil(requirements.disk_gb or 0)", "int(requirements.disk_gb or 0)",
         "test_a_disk_is_as_large_as_asked_for_and_as_the_block_says"),
    Edit("vastai", "offers", "with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):", "if True:",
         "test_an_ask_that_is_written_oddly_is_not_offered_and_hides_no_other"),
    Edit("verda", "words", '("no_capacity", "error"), InstanceState.FAILED', '("no_capacity", "error"), InstanceState.PROVISIONING',
         "test_each_status_is_what_it_means"),
    Edit("verda", "words", 'errors.NoCapacity: ("not enough resources",),', "", "test_sold_out_is_no_capacity"),
    Edit("verda", "words", "    problem_in_success=refusal_in_success,\n", "",
         "test_a_machine_that_cannot_be_ended_while_it_is_made_is_ended_as_soon_as_it_can"),
    Edit("verda", "driver", '"delete_permanently": True}', '"delete_permanently": False}',
         "test_a_machine_goes_with_its_disk_for_good_and_takes_no_other_disk_along"),
    Edit("verda", "driver", '            body["os_volume"]["on_spot_discontinue"] = "delete_permanently"\n', "            pass\n",
         "test_a_spot_machine_that_is_taken_back_says_so_and_leaves_no_disk"),
    Edit("verda", "driver", 'companions.sweep({seen.name}, ("sshkeys", "scripts"), self._lists)', "pass",
         "test_nothing_is_left_behind"),
    Edit("verda", "driver", 'row.get("is_os_volume") and ', "",
         "test_a_machine_goes_with_its_disk_for_good_and_takes_no_other_disk_along"),
    Edit("vultr", "", '"ok": InstanceState.RUNNING', '"ok": InstanceState.PROVISIONING',
         "test_what_was_created_begins_to_run_and_is_reachable"),
    Edit("vultr", "", ', next_at="meta.links.next"', "", "test_all_pages_are_read"),
    Edit("vultr", "", 'errors.NoCapacity: ("not available in the selected region", "out of stock"),', "",
         "test_sold_out_is_no_capacity"),
    Edit("vultr", "", "            scopes.must_be_ours(self.get_instance(instance_id))\n", "",
         "test_what_only_bears_a_name_of_ours_is_reported_and_never_ended"),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def prices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The price lists of all of them, and no second between two requests to Lambda."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(test_lambdalabs.driver_module, "EVERY_S", 0.0)
        patch.setattr(test_vastai.driver_module, "PAGE_S", 0.0)
        patch.setattr(test_vastai.driver_module, "END_S", 0.0)
        without_waiting(patch)
        for module in (test_lambdalabs, test_verda, test_vultr):
            collected = collect.from_offers(module.PRICES, "these tests")
            name = module.PRICES[0].provider
            store.publish(name, collected.prices, collected_at=datetime.now(UTC), source="these tests")
        yield


class Quick(ProviderConformance):
    rounds = 30


def catches(driven: Driven, driver: Any, test: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether this test, of the contract or of the driver's own, fails for that driver. Of one with parameters, for any of them."""
    for pace in ("EVERY_S", "PAGE_S", "END_S") if "driver" in driver.__module__ and hasattr(driver, "__init__") else ():
        monkeypatch.setitem(driver.__init__.__globals__, pace, 0.0)
    monkeypatch.setattr(driven.tests, driven.name, driver)
    if hasattr(Quick, test):
        with driven.fake() as cloud:
            if "attributes" in test or driven.name == "Tensordock":
                cloud.lists_as = "attributes"
            return mutants.fails(lambda: getattr(Quick(), test)(driven.subject(cloud)))
    function = next(getattr(one, test) for one in (driven.tests, *MORE_TESTS) if hasattr(one, test))
    return any(
        mutants.fails(lambda given=given: called(driven, function, given, monkeypatch))
        for given in parameters(function)
    )


def parameters(function: Any) -> list[dict[str, Any]]:
    """What a test is called with, one call each."""
    found: list[dict[str, Any]] = [{}]
    for mark in getattr(function, "pytestmark", []):
        if mark.name == "parametrize":
            names = (
                [one.strip() for one in mark.args[0].split(",")]
                if isinstance(mark.args[0], str)
                else list(mark.args[0])
            )
            rows = [row if len(names) > 1 else (row,) for row in mark.args[1]]
            found = [{**had, **dict(zip(names, row, strict=True))} for had in found for row in rows]
    return found


def called(driven: Driven, function: Any, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = function.__code__.co_varnames[: function.__code__.co_argcount]
    with driven.fake() as cloud, monkeypatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        has = {"cloud": cloud, "monkeypatch": patch, "tmp_path": Path(folder), **given}
        function(**{name: has[name] for name in wanted})


@pytest.mark.parametrize("way", mutants.ANY, ids=lambda way: way.__name__)
@pytest.mark.parametrize("provider", DRIVEN)
def test_a_fault_that_any_driver_could_have_is_caught(
    provider: str, way: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven = DRIVEN[provider]
    driver = getattr(driven.tests, driven.name)
    test = mutants.ANY[way]
    assert catches(driven, mutants.wrong(driver, way), test, monkeypatch), "it survived"


@pytest.mark.parametrize("edit", EDITS, ids=[f"{one.provider} {number}" for number, one in enumerate(EDITS)])
def test_a_line_that_is_wrong_is_caught(edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    driven = DRIVEN[edit.provider]
    module = f"{HOME}.{edit.provider}" + (f".{edit.module}" if edit.module else "")
    driver = mutants.edited(module, edit.old, edit.new, driven.driver)
    assert catches(driven, driver, edit.test, monkeypatch), f"{edit.new!r} instead of {edit.old!r} survived"


@pytest.mark.parametrize(("provider", "test"), sorted({(one.provider, one.test) for one in EDITS}))
def test_what_catches_a_wrong_line_lets_the_right_ones_pass(
    provider: str, test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven = DRIVEN[provider]
    assert not catches(driven, getattr(driven.tests, driven.name), test, monkeypatch)
