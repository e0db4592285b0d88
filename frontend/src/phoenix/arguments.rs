//! Arguments become typed: names in any case, the last of several counts, null and absent are the default, unknown
//! ones are ignored.
//!
//! Runs in the frontend on what the host sent. Where Phoenix 0.7 silently takes the default for a member of the
//! wrong type (`{"perm":"755"}` makes a file's mode 0), this is an error that names it: a client that sends such
//! never got what it asked for.

use std::fmt;

use proto::{Dialect, Request};
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor};

use super::kind;
use crate::value::{Member, Value};

/// A member that is of the wrong type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(String);

impl de::Error for Fault {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Fault(text.to_string())
    }
}

/// Decodes the arguments of `name`, a command of Phoenix's dialect; takes the values out of `members`.
///
/// Nothing comes back for a name that the dialect does not have.
///
/// # Errors
/// A member of the wrong type.
pub fn decode(name: &str, members: &mut [Member]) -> Option<Result<Request, Fault>> {
    proto::decode(Dialect::Phoenix, name, Arguments(members))
}

struct Arguments<'a>(&'a mut [Member]);

impl<'de> Deserializer<'de> for Arguments<'_> {
    type Error = Fault;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_map(ByField { members: self.0, fields: fields.iter(), current: None })
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fault> {
        Err(de::Error::custom("arguments are always a struct"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct ByField<'a> {
    members: &'a mut [Member],
    fields: std::slice::Iter<'static, &'static str>,
    current: Option<(&'static str, Value)>,
}

impl<'de> MapAccess<'de> for ByField<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        for &field in self.fields.by_ref() {
            let named = |member: &&mut Member| member.name.eq_ignore_ascii_case(field.as_bytes());
            let Some(member) = self.members.iter_mut().rfind(named) else { continue };
            let value = std::mem::take(&mut member.value);
            if value != Value::Null {
                self.current = Some((field, value));
                return seed.deserialize(field.into_deserializer()).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let (name, value) = self.current.take().unwrap_or_default();
        seed.deserialize(Argument { name, value })
    }
}

/// One value, whose type the receiver names.
struct Argument {
    name: &'static str,
    value: Value,
}

impl Argument {
    fn refuse<T>(&self, expected: &str) -> Result<T, Fault> {
        let found = match self.value {
            Value::Uint(_) | Value::Double(_) if expected == "integer" => "a number that is none",
            ref other => kind(other),
        };
        Err(Fault(format!("argument {}: expected {expected}, got {found}", self.name)))
    }
}

impl<'de> Deserializer<'de> for Argument {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fault> {
        self.refuse("nothing")
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value {
            Value::Bool(value) => visitor.visit_bool(value),
            _ => self.refuse("bool"),
        }
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value {
            Value::Int(number) => visitor.visit_i64(number),
            _ => self.refuse("integer"),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value {
            Value::Text(text) => visitor.visit_byte_buf(text.into_vec()),
            _ => self.refuse("string"),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u32 u64 u128 f32 f64 char str bytes byte_buf unit unit_struct newtype_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phoenix::json;
    use proto::file;

    fn decoded(name: &str, arguments: &str) -> Result<Request, String> {
        let Ok(Value::Object(members)) = json::parse(arguments.as_bytes()) else { panic!("{arguments}") };
        decode(name, &mut members.into_vec()).unwrap().map_err(|fault| fault.to_string())
    }

    #[test]
    fn what_is_absent_or_null_takes_its_default() {
        let open = |arguments| match decoded("file-open", arguments) {
            Ok(Request::File(file::Request::PhoenixOpen(open))) => {
                (open.path.lossy().into_owned(), open.perm)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(open("{}"), (String::new(), 0o644));
        assert_eq!(open(r#"{"PATH":"/tmp","perm":null,"other":[1]}"#), ("/tmp".to_owned(), 0o644));
        assert_eq!(open(r#"{"path":"/a","path":"/b","perm":384}"#), ("/b".to_owned(), 0o600));
    }

    #[test]
    fn what_is_of_the_wrong_type_is_named() {
        for (name, arguments, text) in [
            ("file-chmod", r#"{"perm":"755"}"#, "argument perm: expected integer, got string"),
            ("file-chmod", r#"{"perm":1.5}"#, "argument perm: expected integer, got a number that is none"),
            ("file-stat", r#"{"path":5}"#, "argument path: expected string, got number"),
            ("file-write", r#"{"eof":1}"#, "argument eof: expected bool, got number"),
        ] {
            assert_eq!(decoded(name, arguments).unwrap_err(), text);
        }
    }

    #[test]
    fn a_command_without_arguments_ignores_what_it_is_given() {
        assert!(decoded("sysinfo", r#"{"x":1}"#).is_ok());
    }
}
