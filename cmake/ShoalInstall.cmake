# `cmake --install` gives a tree that can be moved: a shared file system, a module folder.
include(GNUInstallDirs)
set_target_properties(shoal PROPERTIES INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}" INSTALL_RPATH_USE_LINK_PATH ON)
install(TARGETS shoal RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY examples DESTINATION ${CMAKE_INSTALL_DATADIR}/shoal)
install(FILES README.md DESTINATION ${CMAKE_INSTALL_DATADIR}/shoal)
