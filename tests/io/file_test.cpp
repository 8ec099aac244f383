#include "io/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>

#include "core/error.h"
#include "io/reader.h"
#include "tests/io/temp_folder.h"

namespace shardtune::io {
namespace {

TEST(BoundedReader, ReadsLittleEndianAndStopsAtTheEnd) {
  const std::string bytes("\x01\x02\x03\x04\x05", 5);
  BoundedReader reader("f.bin", as_bytes(bytes));
  EXPECT_EQ(reader.read<uint16_t>("a"), 0x0201);
  EXPECT_EQ(reader.offset(), 2);
  EXPECT_HAS(message_of<DataError>([&] { reader.read<uint32_t>("count"); }),
             "f.bin: byte 2: count: expected 4 bytes, found 3");
  EXPECT_HAS(message_of<DataError>([&] { reader.take(UINT64_MAX, "blob"); }), "byte 2: blob");
  EXPECT_EQ(reader.take_text(3, "rest"), "\x03\x04\x05");
  EXPECT_EQ(reader.remaining(), 0);
  EXPECT_TRUE(reader.take(0, "nothing").empty());
}

TEST(BoundedReader, CountsAreBoundedByTheBytesLeft) {
  std::string bytes(24, '\0');
  bytes[0] = 4;
  BoundedReader fits("f", as_bytes(bytes));
  EXPECT_EQ(fits.read_count(4, "items"), 4);
  bytes[0] = 5;
  BoundedReader larger("f", as_bytes(bytes));
  EXPECT_HAS(message_of<DataError>([&] { larger.read_count(4, "items"); }),
             "f: byte 0: items: expected at most 4, found 5");
  bytes.replace(0, 8, std::string(8, '\xff'));
  BoundedReader wraps("f", as_bytes(bytes));
  EXPECT_HAS(message_of<DataError>([&] { wraps.read_count(16, "items"); }), "18446744073709551615");
}

TEST(MappedFile, RefusesEverythingThatIsNotAFile) {
  const TempFolder folder;
  const auto fifo = folder.path() / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  const auto read = [](const fs::path& path) {
    return message_of<MissingInputError>([&] { MappedFile file(path); });
  };
  EXPECT_HAS(read(fifo), "found a FIFO");
  EXPECT_HAS(read(folder.path()), "found a folder");
  EXPECT_HAS(read("/dev/null"), "found a device");
  EXPECT_HAS(read(folder.path() / "absent"), "No such file");
  EXPECT_HAS(message_of<MissingInputError>([&] { read_text_file(fifo, 10); }), "found a FIFO");
  fs::create_symlink("loop", folder.path() / "loop");
  EXPECT_HAS(read(folder.path() / "loop"), "symbolic links");
}

TEST(MappedFile, ReadsAndNoticesChanges) {
  const TempFolder folder;
  const auto path = folder.write("a", "hello");
  MappedFile file(path);
  EXPECT_EQ(file.bytes().size(), 5u);
  EXPECT_NO_THROW(file.check_unchanged());
  fs::resize_file(path, 2);
  EXPECT_HAS(message_of<DataError>([&] { file.check_unchanged(); }), "expected the 5 bytes");
  const auto other = folder.write("b", "hello");
  MappedFile replaced(other);
  folder.write("c", "HELLO");
  fs::rename(folder.path() / "c", other);
  EXPECT_HAS(message_of<DataError>([&] { replaced.check_unchanged(); }), "another file");
  EXPECT_TRUE(MappedFile(folder.write("empty", "")).bytes().empty());
}

TEST(ReadTextFile, ReadsUpToItsCap) {
  const TempFolder folder;
  const std::string text(10'000, 'x');
  const auto path = folder.write("a", text);
  EXPECT_EQ(read_text_file(path, 10'000), text);
  EXPECT_HAS(message_of<DataError>([&] { read_text_file(path, 9'999); }), "at most 9999 bytes");
  EXPECT_EQ(read_text_file(folder.write("empty", ""), 0), "");
}

TEST(JoinUntrusted, RefusesEveryNameThatIsNotOneComponent) {
  const TempFolder folder;
  const std::string names[] = {"",           ".",
                               "..",         "../a",
                               "a/b",        "/etc/passwd",
                               "a\\b",       "..\\a",
                               "C:a",        std::string("a\0b", 3),
                               "a\nb",       "./a",
                               "a/",         std::string(256, 'a'),
                               "\\\\srv\\a", "~/../x",
                               "//a"};
  for (const std::string& name : names)
    EXPECT_HAS(message_of<DataError>([&] { join_untrusted(folder.path(), name, "index.json"); }),
               "index.json: expected the name of a file");
  EXPECT_EQ(join_untrusted(folder.path(), "a.b..c", "i"), folder.path() / "a.b..c");
}

TEST(JoinUntrusted, LinksMustStayInTheFolderOrTheModelCache) {
  const TempFolder folder;
  const auto model = folder.path() / "model";
  fs::create_directory(model);
  folder.write("outside", "x");
  folder.write("model/inside", "x");
  fs::create_symlink("inside", model / "good");
  fs::create_symlink("../outside", model / "bad");
  fs::create_symlink("/etc/passwd", model / "worse");
  EXPECT_NO_THROW(join_untrusted(model, "good", "i"));
  for (const char* name : {"bad", "worse"})
    EXPECT_HAS(message_of<DataError>([&] { join_untrusted(model, name, "i"); }), "symbolic link");
  const auto snapshot = folder.path() / "models--org--name/snapshots/1";
  fs::create_directories(snapshot);
  fs::create_directories(folder.path() / "models--org--name/blobs");
  folder.write("models--org--name/blobs/b", "x");
  fs::create_symlink("../../blobs/b", snapshot / "shard");
  fs::create_symlink("../../../outside", snapshot / "bad");
  EXPECT_NO_THROW(join_untrusted(snapshot, "shard", "i"));
  EXPECT_THROW(join_untrusted(snapshot, "bad", "i"), DataError);
}

TEST(FileWriter, RemovesAnUncommittedFileAndKeepsACommittedOne) {
  const TempFolder folder;
  {
    FileWriter writer(folder.path() / "a");
    writer.write("abc");
    EXPECT_EQ(writer.bytes_written(), 3);
  }
  EXPECT_FALSE(fs::exists(folder.path() / "a"));
  {
    FileWriter writer(folder.path() / "a");
    writer.write("abc");
    writer.write(as_bytes("def"));
    writer.commit();
    EXPECT_THROW(writer.write("late"), ArgumentError);
  }
  EXPECT_EQ(read_bytes(folder.path() / "a"), "abcdef");
}

TEST(FileWriter, TellsPathReasonAndSpace) {
  const TempFolder folder;
  EXPECT_HAS(message_of<WriteError>([&] { FileWriter writer(folder.path() / "no/a"); }),
             "cannot create the file: No such file");
  EXPECT_HAS(message_of<WriteError>([&] { FileWriter writer(folder.path()); }), "found a folder");
  EXPECT_HAS(message_of<WriteError>([&] { FileWriter writer("/dev/null"); }), "device");
  EXPECT_TRUE(fs::exists("/dev/null"));
}

TEST(FileWriter, AFileSizeLimitIsAWriteErrorAndLeavesNoFile) {
  const TempFolder folder;
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = before;
  small.rlim_cur = 1000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = message_of<WriteError>([&] {
    FileWriter writer(folder.path() / "a");
    writer.write(std::string(800, 'x'));
    writer.write(std::string(800, 'x'));  // 200 bytes fit: a short write, then the error
  });
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_HAS(message, "writing failed at byte 1000: File too large; needed 600 bytes");
  EXPECT_HAS(message, "bytes free");
  EXPECT_FALSE(fs::exists(folder.path() / "a"));
}

TEST(DurableFiles, ReplaceTheOldContentWhole) {
  const TempFolder folder;
  const auto path = folder.path() / "a.json";
  write_file_durably(path, "one");
  write_file_durably(path, "two");
  EXPECT_EQ(read_bytes(path), "two");
  EXPECT_FALSE(fs::exists(folder.path() / "a.json.partial"));
  create_folders(folder.path() / "x/y");
  rename_durably(path, folder.path() / "x/y/b");
  EXPECT_EQ(read_bytes(folder.path() / "x/y/b"), "two");
  EXPECT_HAS(message_of<WriteError>([&] { rename_durably(path, folder.path() / "c"); }),
             "cannot rename");
  EXPECT_HAS(message_of<WriteError>([&] { create_folders(folder.path() / "x/y/b"); }),
             "cannot create the folder");
  EXPECT_NO_THROW(require_free_space(folder.path() / "not/yet/there", 1, "checkpoint"));
  EXPECT_HAS(
      message_of<WriteError>([&] { require_free_space(folder.path(), INT64_MAX, "checkpoint"); }),
      "checkpoint: needed 9223372036854775807 bytes");
}

// Vectors of RFC 3720, appendix B.4.
TEST(Crc32c, MatchesPublishedVectors) {
  EXPECT_EQ(crc32c(as_bytes(std::string(32, '\0'))), 0x8a9136aau);
  EXPECT_EQ(crc32c(as_bytes(std::string(32, '\xff'))), 0x62a8ab43u);
  EXPECT_EQ(crc32c(as_bytes("123456789")), 0xe3069283u);
  EXPECT_EQ(crc32c({}), 0u);
  const std::string text = "the quick brown fox jumps over";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    const auto first = crc32c(as_bytes(std::string_view(text).substr(0, cut)));
    EXPECT_EQ(crc32c(as_bytes(std::string_view(text).substr(cut)), first), crc32c(as_bytes(text)));
  }
}

// Long inputs take three lanes at a time: the same value as byte by byte, from any start.
TEST(Crc32c, LongInputsHaveTheValueOfTheirBytes) {
  std::string text;
  for (uint32_t i = 0; i < 40000; ++i)
    text += static_cast<char>(i * 2654435761u >> 19);
  for (const size_t length : {12287u, 12288u, 12289u, 24576u, 36871u, 40000u}) {
    for (const size_t begin : {0u, 1u, 13u}) {
      const auto bytes = as_bytes(text).subspan(begin, std::min(length, text.size() - begin));
      uint32_t expected = 0x1234u;
      for (size_t i = 0; i < bytes.size(); ++i)
        expected = crc32c(bytes.subspan(i, 1), expected);
      EXPECT_EQ(crc32c(bytes, 0x1234u), expected) << length << " from " << begin;
    }
  }
}

// Vectors of FIPS 180-4.
TEST(Sha256, MatchesPublishedVectors) {
  EXPECT_EQ(sha256_hex({}), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex(as_bytes("abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 hash;
  hash.update(as_bytes("a"));
  hash.update(as_bytes("bc"));
  EXPECT_EQ(hash.hex_digest(), sha256_hex(as_bytes("abc")));
}

}  // namespace
}  // namespace shardtune::io
