// Golden files, corpora and the model file that tests of data/ read, and a folder to write in.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "io/file.h"
#include "io/json.h"
#include "tests/data/repeated_units.h"

namespace shardtune::testing {

namespace fs = std::filesystem;

inline std::string golden(const std::string& name) {
  return std::string(SHARDTUNE_SOURCE_DIR) + "/tests/golden/" + name;
}

inline std::string shared(const std::string& name) {
  return std::string(SHARDTUNE_SOURCE_DIR) + "/../shared/" + name;
}

/// The SmolLM2 file, "" where it is absent.
inline std::string model_path() {
  const char* named = std::getenv("SHARDTUNE_MODEL");
  const char* home = std::getenv("HOME");
  const fs::path path = named != nullptr ? fs::path(named)
                                         : fs::path(home != nullptr ? home : "/") /
                                               ".cache/shardtune/SmolLM2-135M-Instruct.Q4_1.gguf";
  return fs::exists(path) ? path.string() : "";
}

inline std::vector<int32_t> ids_of(const io::Json& list) {
  std::vector<int32_t> ids;
  for (const io::Json& id : list.as_array())
    ids.push_back(static_cast<int32_t>(id.as_integer()));
  return ids;
}

class TempFolder {
 public:
  TempFolder() {
    std::string name = (fs::temp_directory_path() / "shardtune_data_XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TempFolder() { fs::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string path() const { return path_.string(); }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
    return (path_ / name).string();
  }

 private:
  fs::path path_;
};

/// A small golden tokenizer (tests/golden/tokenizer/make.py) through a folder of its own.
inline std::unique_ptr<data::Tokenizer> small_tokenizer(const std::string& name,
                                                        const std::string& config = "{}") {
  const TempFolder folder;
  folder.write("tokenizer.json",
               io::read_text_file(golden("tokenizer/small_" + name + ".json"), 1 << 24));
  folder.write("tokenizer_config.json", config);
  return data::load_tokenizer(folder.path());
}

/// The act throws an Expected whose message has every part.
template <typename Expected>
void expect_error(const std::function<void()>& act, const std::vector<std::string>& parts) {
  try {
    act();
    FAIL() << "accepted; expected an error with '" << parts.front() << "'";
  } catch (const Expected& error) {
    for (const std::string& part : parts)
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

}  // namespace shardtune::testing
