from bench.fill import BATCH, fillers, policies
from ca.resources.kinds import decode, encode


def test_fillers_come_in_batches_and_are_all_different() -> None:
    batches = list(fillers("elsewhere", BATCH + 300))
    assert [len(batch) for batch in batches] == [BATCH, 300]
    workloads = [workload for batch in batches for workload in batch]
    assert len({w.spec.address for w in workloads}) == len({w.title for w in workloads}) == BATCH + 300


def test_a_filler_is_a_workload_that_the_centre_takes() -> None:
    ((workload,),) = fillers("elsewhere", 1)
    assert decode(encode(workload)) == workload


def test_policies_are_all_different_and_taken_by_the_centre() -> None:
    made = [policy for batch in policies(BATCH + 1) for policy in batch]
    assert len({policy.key for policy in made}) == BATCH + 1
    assert decode(encode(made[-1])) == made[-1]
