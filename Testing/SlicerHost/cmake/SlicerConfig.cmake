# What an extension's find_package(Slicer) gets in Slicer's build tree, as far as scripted modules need it.
#
#   cmake -S EXTENSION -B BUILD -DSlicer_DIR=Testing/SlicerHost/cmake && ctest --test-dir BUILD
#
# The macros install exactly the files that an extension lists, into one flat qt-scripted-modules folder of the build
# tree, and run the self-test of each module from there. A file that is listed and missing stops the configuration; one
# that is needed and not listed is missing when the test runs.

set(Slicer_FOUND TRUE)
set(Slicer_VERSION "5.13.0")
set(Slicer_VERSION_MAJOR 5)
set(Slicer_VERSION_MINOR 13)
set(Slicer_MAIN_PROJECT_APPLICATION_NAME "Slicer")
set(Slicer_HOST_DIR "${CMAKE_CURRENT_LIST_DIR}/..")
get_filename_component(Slicer_HOST_PARENT "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)

set(Slicer_BINARY_DIR "${CMAKE_BINARY_DIR}")
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR "lib/Slicer-${Slicer_VERSION_MAJOR}.${Slicer_VERSION_MINOR}/qt-scripted-modules")
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR "${Slicer_QTSCRIPTEDMODULES_LIB_DIR}")
set(Slicer_USE_FILE "${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake")
set(Slicer_EXTENSION_CPACK "${CMAKE_CURRENT_LIST_DIR}/SlicerExtensionCPack.cmake")
set(Slicer_EXTENSION_GENERATE_CONFIG "${CMAKE_CURRENT_LIST_DIR}/SlicerExtensionNothing.cmake")

if(NOT Slicer_HOST_PYTHON)
  find_program(Slicer_HOST_PYTHON NAMES python3 python REQUIRED)
endif()
set(Slicer_HOST_PYTHON "${Slicer_HOST_PYTHON}" CACHE FILEPATH "Python with slicer-core and PySide6")

include("${CMAKE_CURRENT_LIST_DIR}/SlicerMacros.cmake")
