import json

from unclip_jax.planning.plan import Memory, Plan, Times, Traffic
from unclip_jax.planning.report import as_json, cost_of, in_words, table

GIB = 2.0**30
PEAK = 16 * 197e12
LAYOUT = {"accumulate": 2, "remat": True}
FITS = Plan(
    topology="v5e:4x4",
    num_chips=16,
    mesh={"data": 4, "fsdp": 4, "tensor": 1},
    batch_size=64,
    parameters=1_230_000_000,
    model_flops=0.2 * PEAK,
    hardware_flops=0.25 * PEAK,
    memory=Memory(
        total=7 * GIB, limit=15.75 * GIB, arguments=2 * GIB, temporaries=4 * GIB, outputs=0.5 * GIB, code=0.5 * GIB
    ),
    compile_seconds=12.0,
    traffic={"all-gather": Traffic(count=10, bytes=3e9), "all-reduce": Traffic(count=2, bytes=5e9)},
    times=Times(compute=0.25, memory=0.1, links=0.05, mfu=0.8),
)
LARGE = Plan(
    **{name: getattr(FITS, name) for name in ("topology", "num_chips", "mesh", "batch_size", "parameters")},
    model_flops=FITS.model_flops,
    hardware_flops=FITS.hardware_flops,
    memory=Memory(total=30 * GIB, limit=15.75 * GIB),
    compile_seconds=3.0,
)


def test_cost_at_an_assumed_mfu():
    cost = cost_of(FITS, 1000, 0.4, 1.5, PEAK)
    assert cost is not None
    assert (cost.step, cost.mfu) == (0.5, 0.4)
    assert cost.days == 1000 * 0.5 / 86400
    assert cost.chip_hours == 1000 * 0.5 / 3600 * 16
    assert cost.price == 1.5 * cost.chip_hours


def test_nothing_is_faster_than_the_roofline():
    cost = cost_of(FITS, 1000, 0.9, None, PEAK)
    assert cost is not None and (cost.step, cost.price) == (0.25, None) and abs(cost.mfu - 0.8) < 1e-9


def test_words():
    text = in_words("prior/x", LAYOUT, FITS, cost_of(FITS, 600_000, 0.4, 2.0, PEAK))
    assert "prior/x on v5e:4x4 (16 chips): 1,230 M parameters" in text
    assert "state and batch 2.00 + temporaries 4.00 + outputs 0.50 + program 0.50 = 7.00 of 15.75 GiB, fits" in text
    # The largest first.
    assert text.index("all-reduce: 2 a step, 5.00 GB") < text.index("all-gather: 10 a step, 3.00 GB")
    assert "roofline: 0.250 s a step, bound by compute" in text and "MFU 80%" in text
    assert "at MFU 40%: 0.500 s a step, 3.5 days for 600,000 steps, 1,333 chip-hours, 2,667 at the price given" in text


def test_words_for_what_does_not_fit():
    text = in_words("prior/x", {"accumulate": 2, "remat": False}, LARGE, None)
    assert "30.00 of 15.75 GiB, DOES NOT FIT" in text
    assert "try --remat True, --accumulate 4, a larger fsdp in --mesh or a smaller --batch" in text
    assert cost_of(LARGE, 10, 0.4, None, PEAK) is None


def test_words_for_drawing():
    text = in_words("prior/x", None, FITS, None)
    assert "mesh data 4, fsdp 4; 64 images\n" in text and "roofline: 0.250 s a batch" in text
    assert "split the weights with fsdp in --mesh" in in_words("prior/x", None, LARGE, None)


def test_table():
    cost = cost_of(FITS, 600_000, 0.4, None, PEAK)
    head, rule, fits, large = table([("a", LAYOUT, FITS, cost), ("b", LAYOUT, LARGE, None)]).splitlines()
    assert head.count("|") == rule.count("|") == fits.count("|") == large.count("|")
    assert "4 data x 4 fsdp | 64 / 2 | 2.00 GiB | 4.00 GiB | 15.75 GiB | 8.0 GB | 0.25 s (compute) | 80%" in fits
    assert "needs 30.0 GiB" in large


def test_json():
    data = json.loads(json.dumps(as_json("a", LAYOUT, FITS, cost_of(FITS, 10, 0.4, None, PEAK))))
    assert data["fits"] and data["memory"]["temporaries"] == 4 * GIB and data["times"]["bound"] == "compute"
    assert data["cost"]["steps"] == 10 and data["traffic"]["all-gather"]["count"] == 10
    assert not as_json("b", LAYOUT, LARGE, None)["fits"]
