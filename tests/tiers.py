"""Which tests are fast, which are slow, and which files take longest: read by conftest.py and test_tiers.py."""

# `pytest -m fast` collects these alone: the numerics on a small scale, everything that needs no compiler, and every
# tool once. About 100 s on two cores.
FAST = (
    "test_color.py",
    "test_compare.py",
    "test_compare_statistics.py",
    "test_components.py",
    "test_config.py",
    "test_console.py",
    "test_data.py",
    "test_decode.py",
    "test_folder_layout.py",
    "test_learning.py",
    "test_loading.py",
    "test_loop.py",
    "test_metrics.py",
    "test_muon_sgd.py",
    "test_network.py",
    "test_optim.py",
    "test_output.py",
    "test_predict_parts.py",
    "test_problems.py",
    "test_record.py",
    "test_rng.py",
    "test_rows.py",
    "test_sampling.py",
    "test_stock.py",
    "test_sweep_gpus.py",
    "test_sweep_halving.py",
    "test_sweep_loading.py",
    "test_sweep_locks.py",
    "test_sweep_plan_file.py",
    "test_sweep_resolving.py",
    "test_sweep_spec.py",
    "test_sweep_status.py",
    "test_tiers.py",
    "test_tools.py",
)

# `pytest` leaves these out and `pytest -m slow` runs them: further instances of what the others test too, in more
# processes or on more devices, and what needs minutes to compile.
SLOW = (
    "test_hlo_collectives.py",
    "test_processes.py::test_a_frozen_process_ends_the_job_with_a_line[1]",
    "test_processes.py::test_processes_with_a_part_of_the_data_each",
    "test_processes.py::test_processes_without_a_workdir_share_a_new_one",
    "test_scaling.py::test_it_says_that_shared_cores_show_no_speed_up",
    "test_stream.py::test_on_several_devices_a_streamed_run_is_the_same[('jit', 8",
    "test_stream.py::test_two_processes_stream_a_part_each",
    "test_torture.py::",
    "test_zoo.py::test_the_zoo_learns_eight_images",
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
