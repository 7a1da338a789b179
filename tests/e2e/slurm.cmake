# srun and sbatch on an emulated cluster; skipped where Slurm, root or namespaces are missing.
add_test(NAME slurm
         COMMAND Python3::Interpreter -B ${CMAKE_CURRENT_SOURCE_DIR}/slurm_test.py)
set_tests_properties(slurm PROPERTIES TIMEOUT 120 LABELS e2e SKIP_RETURN_CODE 77 ENVIRONMENT
  "TRIREME=$<TARGET_FILE:trireme>;TRIREME_ROOT=${PROJECT_SOURCE_DIR}")
