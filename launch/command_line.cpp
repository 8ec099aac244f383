#include "launch/command_line.h"

#include <algorithm>
#include <boost/program_options.hpp>
#include <charconv>
#include <cstdlib>
#include <iostream>
#include <set>
#include <sstream>

#include "core/error.h"
#include "core/parallel_for.h"
#include "core/registry.h"
#include "core/topology.h"
#include "io/text.h"

namespace shardtune::launch {

namespace po = boost::program_options;

struct CommandLine::State {
  std::string usage;
  std::string summary;
  po::options_description options{"options"};
  po::options_description hidden;
  po::positional_options_description positions;
  std::string positional;
  std::string positional_help;
  std::vector<std::string> names;
  std::set<std::string> later;
  po::variables_map values;

  po::options_description all() const {
    po::options_description both;
    both.add(options).add(hidden);
    return both;
  }
  std::string verb() const { return usage.substr(0, usage.find(' ')); }
};

namespace {

/// The strings of a po error name options in several spellings: "--x", "x", "-x".
std::string bare_name(const std::string& option) {
  const size_t begin = option.find_first_not_of('-');
  const size_t end = option.find('=');
  return begin == std::string::npos ? option : option.substr(begin, end - begin);
}

}  // namespace

CommandLine::CommandLine(std::string usage, std::string summary)
    : state_(std::make_unique<State>()) {
  state_->usage = std::move(usage);
  state_->summary = std::move(summary);
  flag("help", "show this text");
}

CommandLine::~CommandLine() = default;

void CommandLine::flag(const std::string& name, const std::string& help) {
  state_->options.add_options()(name.c_str(), help.c_str());
  state_->names.push_back(name);
}

void CommandLine::value(const std::string& name, const std::string& placeholder,
                        const std::string& help) {
  auto* semantic = po::value<std::string>();
  semantic->value_name(placeholder);
  state_->options.add_options()(name.c_str(), semantic, help.c_str());
  state_->names.push_back(name);
}

void CommandLine::repeated(const std::string& name, const std::string& placeholder,
                           const std::string& help) {
  auto* semantic = po::value<std::vector<std::string>>();
  semantic->value_name(placeholder);
  state_->options.add_options()(name.c_str(), semantic, help.c_str());
  state_->names.push_back(name);
}

void CommandLine::positional(const std::string& name, const std::string& help) {
  state_->hidden.add_options()(name.c_str(), po::value<std::string>(), "");
  state_->positions.add(name.c_str(), 1);
  state_->positional = name;
  state_->positional_help = help;
}

void CommandLine::later(const std::string& name) {
  state_->hidden.add_options()(name.c_str(), po::value<std::string>()->implicit_value(""), "");
  state_->later.insert(name);
}

void CommandLine::threads_option() {
  value("threads", "N", "threads (default: OMP_NUM_THREADS, else all cores)");
}

bool CommandLine::parse(std::span<const std::string> arguments) {
  const std::string where = "shardtune " + state_->verb() + ": ";
  const std::string advice = " See 'shardtune " + state_->verb() + " --help'.";
  const po::options_description all = state_->all();
  // No abbreviations: a new option must never change what an old command line means.
  const int style = po::command_line_style::allow_long |
                    po::command_line_style::long_allow_adjacent |
                    po::command_line_style::long_allow_next;
  std::vector<std::string> list(arguments.begin(), arguments.end());
  std::replace(list.begin(), list.end(), std::string("-h"), std::string("--help"));
  try {
    auto parsed =
        po::command_line_parser(list).options(all).positional(state_->positions).style(style).run();
    po::store(parsed, state_->values);
  } catch (const po::unknown_option& error) {
    const std::string name = bare_name(error.get_option_name());
    throw ConfigError(where + "unknown option '--" + name + "'" +
                      known_names_hint(name, state_->names) + advice);
  } catch (const po::too_many_positional_options_error&) {
    throw ConfigError(where + "expected " +
                      (state_->positional.empty() ? "options only" : "one " + state_->positional) +
                      ", found an argument too many." + advice);
  } catch (const po::multiple_occurrences& error) {
    throw ConfigError(where + "--" + bare_name(error.get_option_name()) +
                      ": expected once, found several times." + advice);
  } catch (const po::error& error) {
    throw ConfigError(where + error.what() + "." + advice);
  }
  if (has("help")) {
    std::cout << help_text();
    return false;
  }
  for (const std::string& name : state_->later) {
    if (has(name))
      throw UnsupportedError(where + "--" + name +
                             " is not there yet: docs/status.md says what is.");
  }
  return true;
}

bool CommandLine::has(const std::string& name) const { return state_->values.count(name) > 0; }

std::string CommandLine::required(const std::string& name) const {
  if (has(name))
    return state_->values[name].as<std::string>();
  const std::string shown = name == state_->positional ? name : "--" + name;
  throw ConfigError("shardtune " + state_->verb() + ": expected " + shown +
                    ", found none. Usage: shardtune " + state_->usage);
}

std::string CommandLine::text_or(const std::string& name, const std::string& otherwise) const {
  return has(name) ? state_->values[name].as<std::string>() : otherwise;
}

std::string CommandLine::utf8_or(const std::string& name, const std::string& otherwise) const {
  std::string text = text_or(name, otherwise);
  if (const auto bad = io::find_invalid_utf8(text))
    throw ConfigError("--" + name + ": expected UTF-8 text, found the byte " +
                      io::quote_text(text.substr(static_cast<size_t>(*bad), 1)) + " at position " +
                      std::to_string(*bad) + ". Convert the text, for example with iconv.");
  return text;
}

int64_t CommandLine::integer_or(const std::string& name, int64_t otherwise,
                                IntegerRange range) const {
  return has(name) ? parse_integer(required(name), "--" + name, range) : otherwise;
}

double CommandLine::number_or(const std::string& name, double otherwise,
                              NumberBounds bounds) const {
  if (!has(name))
    return otherwise;
  const std::string text = required(name);
  double number = 0.0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end || !(number >= bounds.min && number <= bounds.max)) {
    std::ostringstream message;
    message << "--" << name << ": expected a number from " << bounds.min << " to " << bounds.max
            << ", found '" << text << "'. Write for example " << otherwise << ".";
    throw ConfigError(message.str());
  }
  return number;
}

std::vector<std::string> CommandLine::all(const std::string& name) const {
  return has(name) ? state_->values[name].as<std::vector<std::string>>()
                   : std::vector<std::string>{};
}

std::string CommandLine::choice_or(const std::string& name, const std::string& otherwise,
                                   const std::vector<std::string>& choices,
                                   const std::vector<std::string>& later) const {
  const std::string text = text_or(name, otherwise);
  if (std::find(choices.begin(), choices.end(), text) != choices.end())
    return text;
  if (std::find(later.begin(), later.end(), text) != later.end())
    throw UnsupportedError("--" + name + " " + text +
                           " is not there yet: docs/status.md says what is.");
  throw ConfigError("--" + name + ": unknown '" + text + "'" + known_names_hint(text, choices));
}

void CommandLine::apply_threads(int64_t otherwise) const {
  const IntegerRange range{1, 4096};
  const char* environment = std::getenv("OMP_NUM_THREADS");
  int64_t threads = otherwise;
  if (has("threads"))
    threads = integer_or("threads", 1, range);
  else if (environment != nullptr && *environment != '\0')  // "4,2": the first is the outer level
    threads = parse_integer(std::string(environment).substr(0, std::string(environment).find(',')),
                            "OMP_NUM_THREADS", range);
  else if (otherwise <= 0)
    threads = num_usable_cores();
  set_num_threads(static_cast<int>(threads));
}

std::string CommandLine::help_text() const {
  std::ostringstream text;
  text << "usage: shardtune " << state_->usage << "\n\n" << state_->summary << "\n\n";
  if (!state_->positional.empty())
    text << state_->positional << ": " << state_->positional_help << "\n\n";
  text << state_->options;
  return text.str();
}

int64_t parse_integer(const std::string& text, const std::string& what, IntegerRange range) {
  int64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end || number < range.min || number > range.max)
    throw ConfigError(what + ": expected an integer from " + std::to_string(range.min) + " to " +
                      std::to_string(range.max) + ", found '" + text + "'. Write for example " +
                      std::to_string(range.min) + ".");
  return number;
}

}  // namespace shardtune::launch
