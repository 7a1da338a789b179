trireme_test(launch_chat_format_test
  SOURCES launch_chat_format_test.cc ${PROJECT_SOURCE_DIR}/launch/chat_format.cc
  DEPENDS trireme_base)
