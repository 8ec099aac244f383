# cmake --install, and a Debian package by cpack (docs/installing.md).
# cpack packs what was built; without this it would build tests and benchmarks first.
set(CMAKE_SKIP_INSTALL_ALL_DEPENDENCY ON)
# launch/run finds the program as ../../../bin/shardtune, so these places are fixed.
set(SHARDTUNE_SHARE share/shardtune)
set(SHARDTUNE_DOC share/doc/shardtune)
install(TARGETS shardtune RUNTIME DESTINATION bin)
install(PROGRAMS launch/run DESTINATION "${SHARDTUNE_SHARE}/launch")
install(FILES launch/slurm.sbatch DESTINATION "${SHARDTUNE_SHARE}/launch")
install(CODE "execute_process(COMMAND \"${CMAKE_COMMAND}\" -E create_symlink
  ../share/shardtune/launch/run
  \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/bin/shardtune-run\" COMMAND_ERROR_IS_FATAL ANY)")
install(DIRECTORY configs DESTINATION "${SHARDTUNE_SHARE}")
install(FILES data/samples/README.md data/samples/train.jsonl data/samples/eval.jsonl
  DESTINATION "${SHARDTUNE_SHARE}/data/samples")
install(DIRECTORY docs/ DESTINATION "${SHARDTUNE_DOC}")
install(FILES README.md SECURITY.md cmake/copyright DESTINATION "${SHARDTUNE_DOC}")

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME shardtune)
set(CPACK_PACKAGE_VENDOR "the shardtune maintainers")
set(CPACK_PACKAGE_CONTACT "shardtune maintainers <shardtune@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "fine-tuning of large language models on CPUs and clusters")
set(CPACK_PACKAGE_DESCRIPTION
"Trains small adapters on a frozen base, quantised or not, alone or on the ranks
of MPI, with optimizer states, gradients and parameters sharded as in ZeRO.
Exports what PEFT, transformers and llama.cpp load.")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
# Libraries by dpkg-shlibdeps; mpirun is started by shardtune-run and looked for by a single process
# of OpenMPI too.
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_DEPENDS openmpi-bin)
include(CPack)
