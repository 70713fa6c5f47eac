"""Which test files are fast, and which take longest: read by conftest.py and test_tiers.py."""

# `pytest -m fast` collects these alone: the numerics on a small scale, everything that needs no compiler, and every
# tool once. Under 90 s on two cores.
FAST = (
    "test_color.py",
    "test_compare.py",
    "test_compare_statistics.py",
    "test_config.py",
    "test_console.py",
    "test_data.py",
    "test_decode.py",
    "test_folder_layout.py",
    "test_learning.py",
    "test_loading.py",
    "test_loop.py",
    "test_metrics.py",
    "test_optim.py",
    "test_output.py",
    "test_predict_parts.py",
    "test_problems.py",
    "test_record.py",
    "test_rng.py",
    "test_rows.py",
    "test_sampling.py",
    "test_sweep_halving.py",
    "test_sweep_loading.py",
    "test_sweep_locks.py",
    "test_sweep_plan_file.py",
    "test_sweep_resolving.py",
    "test_sweep_spec.py",
    "test_tiers.py",
    "test_tools.py",
)

# First, so that the workers of `pytest -n2` end together.
LONGEST = (
    "test_processes.py",
    "test_stream.py",
    "test_cli.py",
    "test_odd_workdirs.py",
    "test_endings.py",
    "test_ranges.py",
    "test_affine.py",
    "test_export.py",
    "test_hlo_collectives.py",
    "test_conv_pool.py",
    "test_parallel_data.py",
    "test_augment.py",
    "test_predict.py",
    "test_resume.py",
    "test_exact_evaluation.py",
)
