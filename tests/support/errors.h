// How a test asks for the Error that a call must end with. Other exceptions pass through.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "base/error.h"

namespace trireme {

// Fails the test where the call ends well.
template <typename Call>
Error error_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no error";
  return {ErrorCode::kInternal, "no error"};
}

template <typename Call>
ErrorCode code_of(Call&& call) {
  return error_of(call).code();
}

// `part` must stand in the message.
template <typename Call>
void expect_error(ErrorCode code, const std::string& part, Call&& call) {
  const Error error = error_of(call);
  EXPECT_EQ(error.code(), code) << error.what();
  EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
}

}  // namespace trireme
