# include(${Slicer_USE_FILE}): in Slicer, compiler flags and paths; scripted modules need none of them.
enable_testing()
option(BUILD_TESTING "Test the extension's modules" ON)
