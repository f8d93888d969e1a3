// Exceptions for bad arguments, as "name: expected ..., got ...".
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "core/config.hpp"

SP_BEGIN

namespace py = pybind11;

[[noreturn]] inline void raise_type(const char* name, const std::string& wanted,
                                    const std::string& got) {
    throw py::type_error(std::string(name) + ": expected " + wanted + ", got " + got);
}
[[noreturn]] inline void raise_value(const char* name, const std::string& wanted,
                                     const std::string& got) {
    throw py::value_error(std::string(name) + ": expected " + wanted + ", got " + got);
}

// A shape as Python writes it.
inline std::string text(const std::vector<index>& shape) {
    std::string s = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) {
        s += (i ? ", " : "") + std::to_string(shape[i]);
    }
    return s + (shape.size() == 1 ? ",)" : ")");
}

SP_END
