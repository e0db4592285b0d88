//! Phoenix's dialect: one JSON object a line, answers with tags, errors in base64.
//!
//! Runs in the frontend on what the host sent. Pure: no I/O; a line is at most [`lines::LINE_BYTES`] long and has at most
//! [`json::VALUES`] values.

pub mod arguments;
pub mod encoding;
pub mod json;
pub mod lines;

use crate::value::{Member, Value};

/// A request, before its command is looked up.
#[derive(Debug, Default, PartialEq)]
pub struct Asked {
    /// The command's name; empty if there is none.
    pub execute: Vec<u8>,
    /// Its arguments; empty if there are none or they are no object.
    pub arguments: Vec<Member>,
    /// What the answer repeats.
    pub tag: Vec<u8>,
}

/// What every request but a few gets while filesystems are frozen; clients match the beginning.
pub fn frozen(name: &str) -> String {
    format!("All filesystems are frozen. Cannot execute: {name}")
}

/// Reads one line, without its LF.
///
/// # Errors
/// The text of the answer, whose tag is empty.
pub fn read(line: &[u8]) -> Result<Asked, String> {
    json::parse(line).and_then(ask).map_err(|what| format!("JSON parse error: {what}"))
}

/// Takes a request's members: names in any case, the last of several counts, null says nothing.
///
/// # Errors
/// The first member of a wrong type, in the words of Go's `encoding/json`.
pub fn ask(value: Value) -> Result<Asked, String> {
    let Value::Object(members) = value else {
        return Err(format!("json: cannot unmarshal {} into Go value of type main.Request", kind(&value)));
    };
    let mut asked = Asked::default();
    let mut fault = None;
    for Member { name, value } in members {
        if name.eq_ignore_ascii_case(b"arguments") {
            asked.arguments = match value {
                Value::Object(members) => members.into_vec(),
                _ => Vec::new(),
            };
            continue;
        }
        let (field, known) = if name.eq_ignore_ascii_case(b"execute") {
            (&mut asked.execute, "execute")
        } else if name.eq_ignore_ascii_case(b"tag") {
            (&mut asked.tag, "tag")
        } else {
            continue;
        };
        match value {
            Value::Text(text) => *field = text.into_vec(),
            Value::Null => {}
            other => {
                fault.get_or_insert_with(|| {
                    let kind = kind(&other);
                    format!(
                        "json: cannot unmarshal {kind} into Go struct field Request.{known} of type string"
                    )
                });
            }
        }
    }
    fault.map_or(Ok(asked), Err)
}

/// What Go calls the kind of a value.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Int(_) | Value::Uint(_) | Value::Double(_) => "number",
        Value::Text(_) => "string",
        Value::List(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(line: &str) -> String {
        read(line.as_bytes()).unwrap_err()
    }

    fn tag(line: &str) -> String {
        String::from_utf8(read(line.as_bytes()).unwrap().tag).unwrap()
    }

    #[test]
    fn names_of_members_match_in_any_case_and_the_last_one_counts() {
        assert_eq!(tag(r#"{"EXECUTE":"ping","Tag":"case"}"#), "case");
        assert_eq!(tag(r#"{"tag":"a","TAG":"b","tag":null}"#), "b");
    }

    #[test]
    fn a_member_of_the_wrong_type_is_named_and_takes_the_tag_with_it() {
        assert_eq!(
            fault(r#"{"execute":5,"tag":"t"}"#),
            "JSON parse error: json: cannot unmarshal number into Go struct field Request.execute of type string"
        );
        assert_eq!(
            fault("[]"),
            "JSON parse error: json: cannot unmarshal array into Go value of type main.Request"
        );
    }

    #[test]
    fn arguments_that_are_no_object_are_none() {
        for line in ["{}", r#"{"arguments":null}"#, r#"{"arguments":[]}"#, r#"{"arguments":"x"}"#] {
            assert_eq!(read(line.as_bytes()), Ok(Asked::default()), "{line}");
        }
    }
}
