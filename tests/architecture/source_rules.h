// The rules about source files that STYLE gives in prose, as functions from a file's path and text
// to complaints, so that each rule is itself tested on text that breaks it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace shardtune::architecture {

/// A source file: path from the root with forward slashes, whole text.
struct SourceFile {
  std::string path;
  std::string text;
};

/// Folders of the table, from the ground up.
std::vector<std::string> folders();

/// Every complaint is "path:line: what is wrong and what to do".
using Complaints = std::vector<std::string>;

/// "#include "folder/file.h"" against the folder table; a quoted path must start with a folder.
Complaints check_folder_includes(const SourceFile& file);
/// "#include <...>": a third-party header only behind its door, an unknown header nowhere.
Complaints check_third_party_includes(const SourceFile& file);
/// Headers of ours that show a third-party header and are included from another folder.
Complaints check_private_headers(const std::vector<SourceFile>& files);
/// At most 500 lines, no open ends, no conditional compilation outside core/.
Complaints check_shape(const SourceFile& file);

}  // namespace shardtune::architecture
