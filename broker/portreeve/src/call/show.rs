//! Answers for people: indented, coloured on a terminal, and harmless there whatever a guest puts into them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::terminal;

/// Members that hold base64, beside those whose names end in `-b64`.
const BASE64: [&str; 3] = ["out-data", "err-data", "bufb64"];

const KEY: &str = "\x1b[34m";
const TEXT: &str = "\x1b[32m";
const OTHER: &str = "\x1b[36m";
const END: &str = "\x1b[0m";

/// The value as indented JSON, with a final line end.
pub(super) fn pretty(value: &Value, coloured: bool) -> String {
    let mut out = String::new();
    write(&mut out, value, 0, coloured);
    out.push('\n');
    out
}

fn write(out: &mut String, value: &Value, depth: usize, coloured: bool) {
    let colour = |out: &mut String, code: &str, text: &str| {
        if coloured {
            out.extend([code, text, END]);
        } else {
            out.push_str(text);
        }
    };
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    let inside = depth.saturating_add(1);
    match value {
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (number, item) in items.iter().enumerate() {
                if number > 0 {
                    out.push(',');
                }
                line(out, inside);
                write(out, item, inside, coloured);
            }
            line(out, depth);
            out.push(']');
        }
        Value::Object(members) if !members.is_empty() => {
            out.push('{');
            for (number, (key, item)) in members.iter().enumerate() {
                if number > 0 {
                    out.push(',');
                }
                line(out, inside);
                colour(out, KEY, &quoted(key));
                out.push_str(": ");
                write(out, item, inside, coloured);
            }
            line(out, depth);
            out.push('}');
        }
        Value::String(text) => colour(out, TEXT, &quoted(text)),
        other => colour(out, OTHER, &other.to_string()),
    }
}

/// A JSON text. More is escaped than JSON asks for: see [`is_harmful`](terminal::is_harmful).
fn quoted(text: &str) -> String {
    terminal::escaped(&Value::from(text).to_string())
}

/// Replaces base64 members by the text they hold, where they hold some.
pub(super) fn decode(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(decode),
        Value::Object(members) => {
            for (key, item) in members {
                let holds = BASE64.contains(&key.as_str()) || key.ends_with("-b64");
                match item.as_str().filter(|_| holds).and_then(text_of_base64) {
                    Some(text) => *item = Value::from(text),
                    None => decode(item),
                }
            }
        }
        _ => {}
    }
}

pub(super) fn text_of_base64(encoded: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_is_indented_and_without_colour_on_a_pipe() {
        let value = json!({"count": 3, "list": [1, "a"], "none": [], "empty": {}});
        let shown = "{\n  \"count\": 3,\n  \"empty\": {},\n  \"list\": [\n    1,\n    \"a\"\n  ],\n  \"none\": []\n}\n";
        assert_eq!(pretty(&value, false), shown);
    }

    #[test]
    fn colours_end_where_they_began() {
        assert_eq!(pretty(&json!({"a": "b"}), true), "{\n  \x1b[34m\"a\"\x1b[0m: \x1b[32m\"b\"\x1b[0m\n}\n");
    }

    #[test]
    fn what_a_guest_says_cannot_command_a_terminal() {
        let name = "a\x1b[2J\u{9b}31m\u{202e}b\x7f";
        assert_eq!(pretty(&json!(name), false), "\"a\\u001b[2J\\u009b31m\\u202eb\\u007f\"\n");
    }

    #[test]
    fn base64_members_are_shown_as_text_and_binary_ones_stay() {
        let mut value = json!({"buf-b64": "aGVsbG8K", "list": [{"out-data": "eA=="}], "err-data": "/w==", "name": "eA=="});
        decode(&mut value);
        assert_eq!(
            value,
            json!({"buf-b64": "hello\n", "list": [{"out-data": "x"}], "err-data": "/w==", "name": "eA=="})
        );
    }
}
