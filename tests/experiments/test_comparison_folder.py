import yaml

from experiments.arms import base_arms
from experiments.comparison_folder import ComparisonFolder, Plan


def test_a_plan_comes_back_and_an_older_one_has_no_suffixes(tmp_path) -> None:
    arms = base_arms(["reinforce"], ["acl", "astra"], ["digits"], [], [], 1, 1)
    plan, folder = Plan("a", "b", 1, 1, ("reinforce",), tuple(arms)), ComparisonFolder(tmp_path)
    folder.write_plan(plan)
    assert folder.read_plan() == plan
    assert [arm.named(seed) for arm, seed in plan.cells] == ["reinforce-acl-seed0", "reinforce-astra-seed0"]
    document = yaml.safe_load(folder.config.read_text())
    for arm in document["arms"]:
        arm["label"] += arm.pop("suffix")
    folder.config.write_text(yaml.safe_dump(document))
    assert [arm.named(seed) for arm, seed in folder.read_plan().cells] == [arm.named(0) for arm in arms]
