include(CMakeParseArguments)

# Copies files to the flat folder of the build tree and installs them to that of the installation. A path keeps its folders.
function(_slicer_host_add_files)
  foreach(file IN LISTS ARGN)
    if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${file}")
      message(FATAL_ERROR "${CMAKE_CURRENT_SOURCE_DIR}/CMakeLists.txt lists ${file}, which does not exist")
    endif()
    get_filename_component(folder "${file}" DIRECTORY)
    configure_file("${file}" "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}/${file}" COPYONLY)
    install(FILES "${file}" DESTINATION "${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}/${folder}" COMPONENT RuntimeLibraries)
  endforeach()
endfunction()

# slicerMacroBuildScriptedModule(NAME <name> SCRIPTS <script>... [RESOURCES <file>...] [WITH_GENERIC_TESTS] [WITH_SUBDIR])
# A script may be listed without ".py".
function(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MODULE "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(NOT MODULE_NAME)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule: NAME is missing")
  endif()
  if(MODULE_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule(${MODULE_NAME}): unknown ${MODULE_UNPARSED_ARGUMENTS}")
  endif()
  set(_scripts)
  foreach(script IN LISTS MODULE_SCRIPTS)
    if(NOT script MATCHES "\\.py$")
      string(APPEND script ".py")
    endif()
    list(APPEND _scripts "${script}")
  endforeach()
  _slicer_host_add_files(${_scripts} ${MODULE_RESOURCES})
  if(MODULE_WITH_GENERIC_TESTS)
    _slicer_host_add_generic_test("${MODULE_NAME}")
  endif()
endfunction()

# The installed module, loaded by the host.
function(_slicer_host_add_generic_test module_name)
  add_test(NAME py_${module_name}GenericTest COMMAND "${Slicer_HOST_PYTHON}" -m SlicerHost
    --module "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}/${module_name}.py"
    WORKING_DIRECTORY "${Slicer_HOST_PARENT}")
  set_tests_properties(py_${module_name}GenericTest PROPERTIES TIMEOUT 300 LABELS "${PROJECT_NAME}"
    ENVIRONMENT "QT_QPA_PLATFORM=offscreen;PYTHONDONTWRITEBYTECODE=1")
endfunction()

# slicer_add_python_unittest(SCRIPT <script> [TESTNAME_PREFIX <prefix>] [SLICER_ARGS <arg>...])
# The script is run as a unittest, as slicer.testing.runUnitTest does it; that of a module from where it is installed.
function(slicer_add_python_unittest)
  cmake_parse_arguments(TEST "" "SCRIPT;TESTNAME_PREFIX" "SLICER_ARGS;TESTS_PASS_REGULAR_EXPRESSION" ${ARGN})
  get_filename_component(name "${TEST_SCRIPT}" NAME_WE)
  get_filename_component(folder "${TEST_SCRIPT}" DIRECTORY)
  set(script "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}/${name}.py")
  if(NOT EXISTS "${script}")
    set(script "${CMAKE_CURRENT_SOURCE_DIR}/${folder}/${name}.py")
  endif()
  if(NOT EXISTS "${script}")
    message(FATAL_ERROR "slicer_add_python_unittest: ${script} does not exist")
  endif()
  add_test(NAME py_${TEST_TESTNAME_PREFIX}${name} COMMAND "${Slicer_HOST_PYTHON}" -m SlicerHost.run_script --unittest
    --path "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}" "${script}" ${TEST_SLICER_ARGS}
    WORKING_DIRECTORY "${Slicer_HOST_PARENT}")
  set_tests_properties(py_${TEST_TESTNAME_PREFIX}${name} PROPERTIES TIMEOUT 300 LABELS "${PROJECT_NAME}"
    ENVIRONMENT "QT_QPA_PLATFORM=offscreen;PYTHONDONTWRITEBYTECODE=1")
endfunction()

# slicer_add_python_test(SCRIPT <script> [TESTNAME_PREFIX <prefix>] [SLICER_ARGS <arg>...] [SCRIPT_ARGS <arg>...])
function(slicer_add_python_test)
  cmake_parse_arguments(TEST "" "SCRIPT;TESTNAME_PREFIX" "SLICER_ARGS;SCRIPT_ARGS" ${ARGN})
  get_filename_component(name "${TEST_SCRIPT}" NAME_WE)
  add_test(NAME py_${TEST_TESTNAME_PREFIX}${name} COMMAND "${Slicer_HOST_PYTHON}" -m SlicerHost.run_script
    --path "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}" "${CMAKE_CURRENT_SOURCE_DIR}/${TEST_SCRIPT}"
    ${TEST_SCRIPT_ARGS} WORKING_DIRECTORY "${Slicer_HOST_PARENT}")
  set_tests_properties(py_${TEST_TESTNAME_PREFIX}${name} PROPERTIES TIMEOUT 300 LABELS "${PROJECT_NAME}"
    ENVIRONMENT "QT_QPA_PLATFORM=offscreen;PYTHONDONTWRITEBYTECODE=1")
endfunction()
