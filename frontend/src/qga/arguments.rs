//! Arguments become typed, in the order of the schema and with the errors of QAPI's visitor
//! (`qapi/qobject-input-visitor.c`).
//!
//! Runs in the frontend on what the host sent; strings are moved, not copied.

use std::cell::Cell;
use std::fmt;

use proto::{Dialect, Request};
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use crate::value::{Member, Value};

/// Items of one array. Linux takes 6 MiB of arguments and environment at most (execve(2)), so nobody can use more; a
/// message may announce no more items than its receiver would make room for.
const ITEMS: usize = 128 * 1024;

/// What is wrong with arguments.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// Which argument: `id`, `arg[1]`.
    path: String,
    what: What,
}

#[derive(Debug, Clone, PartialEq)]
enum What {
    Missing,
    Unexpected(Vec<u8>),
    Type(String),
    Uint,
    TooMany,
    Word(Vec<u8>),
    Other(String),
}

impl Fault {
    fn of(what: What) -> Self {
        Fault { path: String::new(), what }
    }

    fn expected(what: &str) -> Self {
        Fault::of(What::Type(what.to_owned()))
    }

    fn at(mut self, place: &str) -> Self {
        self.path.insert_str(0, place);
        self
    }

    /// The error's text, as bytes: it may quote what is not UTF-8.
    pub fn text(&self) -> Vec<u8> {
        let path = self.path.as_bytes();
        match &self.what {
            What::Missing => [b"Parameter '", path, b"' is missing"].concat(),
            What::Unexpected(name) => [b"Parameter '", path, &**name, b"' is unexpected"].concat(),
            What::Type(expected) => {
                [b"Invalid parameter type for '", path, b"', expected: ", expected.as_bytes()].concat()
            }
            What::TooMany => [b"Parameter '", path, b"' has too many items"].concat(),
            What::Uint => [b"Parameter '", path, b"' expects uint64"].concat(),
            What::Word(word) => [b"Parameter '", path, b"' does not accept value '", &**word, b"'"].concat(),
            What::Other(text) => text.clone().into_bytes(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&String::from_utf8_lossy(&self.text()))
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Fault::of(What::Other(text.to_string()))
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Fault::of(What::Type(expected.to_string()))
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        match found {
            de::Unexpected::Bytes(word) => Fault::of(What::Word(word.to_vec())),
            _ => Fault::of(What::Type(expected.to_string())),
        }
    }

    fn unknown_variant(word: &str, _: &'static [&'static str]) -> Self {
        Fault::of(What::Word(word.as_bytes().to_vec()))
    }

    fn missing_field(name: &'static str) -> Self {
        Fault { path: name.to_owned(), what: What::Missing }
    }
}

/// Decodes the arguments of `name`, a command of QEMU's dialect; takes the values out of `members`.
///
/// Nothing comes back for a name that the dialect does not have.
///
/// # Errors
/// The first fault in the order of the schema, an unexpected member last.
pub fn decode(name: &str, members: &mut [Member]) -> Option<Result<Request, Fault>> {
    let reached = Cell::new(None);
    let outcome = proto::decode(Dialect::Qga, name, Arguments { members, reached: &reached })?;
    let (Err(fault), Some(reached)) = (&outcome, reached.get()) else { return Some(outcome) };
    if matches!(fault.what, What::Missing | What::Unexpected(_)) {
        return Some(outcome);
    }
    // A member is of the wrong type. One that stands before it in the schema may be missing, and is then what
    // counts; which are required only serde knows. So it is asked again, with values that fit everything in place of the
    // members before it, and complains of the first that is missing.
    let missing = proto::decode(Dialect::Qga, name, Probe { members, reached });
    Some(match missing {
        Some(Err(missing)) if missing.what == What::Missing => {
            if reached.before.contains(&&*missing.path) {
                Err(missing)
            } else {
                outcome
            }
        }
        _ => outcome,
    })
}

/// How far the members of a struct were read.
#[derive(Clone, Copy)]
struct Reached {
    /// The fields before the one whose value was read last.
    before: &'static [&'static str],
}

/// The arguments object.
struct Arguments<'a> {
    members: &'a mut [Member],
    reached: &'a Cell<Option<Reached>>,
}

impl<'de> Deserializer<'de> for Arguments<'_> {
    type Error = Fault;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let Arguments { members, reached } = self;
        let unexpected =
            members.iter().find(|member| !fields.iter().any(|field| field.as_bytes() == &*member.name));
        let unexpected = unexpected.map(|member| Fault::of(What::Unexpected(member.name.to_vec())));
        let built = visitor.visit_map(InOrder { members, fields, next: 0, reached, dot: "" })?;
        unexpected.map_or(Ok(built), Err)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fault> {
        Err(de::Error::custom("arguments are always a struct"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// The members that are there, in the order of the schema.
struct InOrder<'a> {
    members: &'a mut [Member],
    fields: &'static [&'static str],
    next: usize,
    reached: &'a Cell<Option<Reached>>,
    /// What stands before a member's name in the path.
    dot: &'static str,
}

impl InOrder<'_> {
    fn find(&self, field: &str) -> Option<usize> {
        self.members.iter().position(|member| *member.name == *field.as_bytes())
    }
}

impl<'de> MapAccess<'de> for InOrder<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        while let Some(&field) = self.fields.get(self.next) {
            self.next += 1;
            if self.find(field).is_some() {
                self.reached.set(Some(Reached {
                    before: self.fields.get(..self.next.saturating_sub(1)).unwrap_or_default(),
                }));
                return seed.deserialize(field.into_deserializer()).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let field = self.fields.get(self.next.saturating_sub(1)).copied().unwrap_or_default();
        let member = self.find(field).and_then(|at| self.members.get_mut(at));
        let value = member.map(|member| std::mem::take(&mut member.value)).unwrap_or_default();
        seed.deserialize(Argument(value)).map_err(|fault| fault.at(field).at(self.dot))
    }
}

/// One value, whose type the receiver names.
struct Argument(Value);

impl Argument {
    fn refuse<T>(expected: &str) -> Result<T, Fault> {
        Err(Fault::expected(expected))
    }
}

impl<'de> Deserializer<'de> for Argument {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Int(number) => visitor.visit_i64(number),
            Value::Uint(number) => visitor.visit_u64(number),
            Value::Double(number) => visitor.visit_f64(number),
            Value::Text(text) => visitor.visit_byte_buf(text.into_vec()),
            Value::List(items) => visitor.visit_seq(Items::of(items)),
            Value::Object(_) => Self::refuse("value"),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            Value::Bool(value) => visitor.visit_bool(value),
            _ => Self::refuse("boolean"),
        }
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            Value::Int(number) => visitor.visit_i64(number),
            _ => Self::refuse("integer"),
        }
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            // Negative numbers wrap: old clients print them signed.
            Value::Int(number) => visitor.visit_u64(number.cast_unsigned()),
            Value::Uint(number) => visitor.visit_u64(number),
            _ => Err(Fault::of(What::Uint)),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            Value::Int(number) => visitor.visit_i64(number),
            Value::Uint(number) => visitor.visit_u64(number),
            Value::Double(number) => visitor.visit_f64(number),
            _ => Self::refuse("number"),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            Value::Text(text) => visitor.visit_byte_buf(text.into_vec()),
            _ => Self::refuse("string"),
        }
    }

    /// Who is asked for is there: null is a value of the wrong type, never an absent one.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            Value::List(items) if items.len() > ITEMS => Err(Fault::of(What::TooMany)),
            Value::List(items) => visitor.visit_seq(Items::of(items)),
            _ => Self::refuse("array"),
        }
    }

    /// An item of a list. In QAPI's structs that stand in lists the optional members come last, so that a member that is absent
    /// before one that is wrong is missing.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        const DOT: &str = ".";
        let Value::Object(members) = self.0 else { return Self::refuse("object") };
        let mut members = members.into_vec();
        let is = |member: &Member, field: &str| *member.name == *field.as_bytes();
        let unexpected = members.iter().find(|member| !fields.iter().any(|field| is(member, field)));
        let unexpected = unexpected.map(|member| Fault::of(What::Unexpected(member.name.to_vec())).at(DOT));
        let absent = fields.iter().find(|field| !members.iter().any(|member| is(member, field))).copied();
        let reached = Cell::new(None);
        let inner = InOrder { members: &mut members, fields, next: 0, reached: &reached, dot: DOT };
        match visitor.visit_map(inner) {
            Ok(built) => unexpected.map_or(Ok(built), Err),
            Err(fault) if fault.what == What::Missing => Err(fault.at(DOT)),
            Err(fault) => match (absent, reached.get()) {
                (Some(absent), Some(reached)) if reached.before.contains(&absent) => {
                    Err(Fault { path: absent.to_owned(), what: What::Missing }.at(DOT))
                }
                _ => Err(fault),
            },
        }
    }

    /// The named newtypes of `proto` are QAPI's alternates.
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.0 {
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Int(number) => visitor.visit_i64(number),
            // A number goes to the alternative that is one, and is then no integer.
            Value::Uint(_) | Value::Double(_) if name == "GuestFileWhence" => Self::refuse("integer"),
            Value::Text(word) => match std::str::from_utf8(&word) {
                Ok(word) => visitor.visit_str(word),
                Err(_) => Err(Fault::of(What::Word(word.into_vec()))),
            },
            _ => Self::refuse(name),
        }
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u32 u128 f32 char str bytes byte_buf unit unit_struct tuple tuple_struct map enum
        identifier ignored_any
    }
}

/// The items of an array, each with its number in the path.
struct Items {
    items: std::vec::IntoIter<Value>,
    next: usize,
}

impl Items {
    fn of(items: Box<[Value]>) -> Self {
        Items { items: items.into_vec().into_iter(), next: 0 }
    }
}

impl<'de> SeqAccess<'de> for Items {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some(item) = self.items.next() else { return Ok(None) };
        let number = self.next;
        self.next += 1;
        seed.deserialize(Argument(item)).map(Some).map_err(|fault| fault.at(&format!("[{number}]")))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

/// The arguments object with values that fit, as far as it was read, and nothing behind.
struct Probe<'a> {
    members: &'a [Member],
    reached: Reached,
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Fault;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let there = |field: &&str| self.members.iter().any(|member| *member.name == *field.as_bytes());
        let fields = self.reached.before.iter().copied().filter(there);
        visitor.visit_map(de::value::MapDeserializer::new(fields.map(|field| (field, Fitting))))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fault> {
        Err(de::Error::custom("arguments are always a struct"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// A value of whatever type is asked for.
struct Fitting;

impl IntoDeserializer<'_, Fault> for Fitting {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Fitting {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_i64(0)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_bool(false)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_str("")
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_none()
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_seq(de::value::SeqDeserializer::new(std::iter::empty::<Fitting>()))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        if name == "GuestFileWhence" { visitor.visit_i64(0) } else { visitor.visit_bool(false) }
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str bytes byte_buf unit unit_struct tuple tuple_struct map
        struct enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qga::{Event, Reader};
    use proto::exec::Capture;

    fn members(text: &str) -> Vec<Member> {
        match Reader::default().read(text.as_bytes()).1 {
            Some(Event::Value(Value::Object(members), _)) => members.into_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn refused(name: &str, arguments: &str) -> String {
        decode(name, &mut members(arguments)).unwrap().unwrap_err().to_string()
    }

    fn decoded(name: &str, arguments: &str) -> Request {
        decode(name, &mut members(arguments)).unwrap().unwrap()
    }

    #[test]
    fn faults_have_the_words_of_qapi() {
        for (name, arguments, text) in [
            ("guest-sync", "{}", "Parameter 'id' is missing"),
            ("guest-sync", "{'id':1,'x':2}", "Parameter 'x' is unexpected"),
            ("guest-sync", "{'id':1.0}", "Invalid parameter type for 'id', expected: integer"),
            ("guest-sync", "{'id':null}", "Invalid parameter type for 'id', expected: integer"),
            (
                "guest-sync",
                "{'id':9223372036854775808}",
                "Invalid parameter type for 'id', expected: integer",
            ),
            ("guest-ping", "{'foo':42}", "Parameter 'foo' is unexpected"),
            ("guest-file-open", "{'path':1}", "Invalid parameter type for 'path', expected: string"),
            (
                "guest-exec",
                "{'path':'x','arg':['a',5]}",
                "Invalid parameter type for 'arg[1]', expected: string",
            ),
            ("guest-exec", "{'path':'x','arg':'a'}", "Invalid parameter type for 'arg', expected: array"),
            (
                "guest-exec",
                "{'path':'x','input-data':1}",
                "Invalid parameter type for 'input-data', expected: string",
            ),
            (
                "guest-exec",
                "{'path':'x','capture-output':1}",
                "Invalid parameter type for 'capture-output', expected: GuestExecCaptureOutput",
            ),
            (
                "guest-exec",
                "{'path':'x','capture-output':1.5}",
                "Invalid parameter type for 'capture-output', expected: GuestExecCaptureOutput",
            ),
            (
                "guest-exec",
                "{'path':'x','capture-output':'all'}",
                "Parameter 'capture-output' does not accept value 'all'",
            ),
            (
                "guest-file-seek",
                "{'handle':1,'offset':0,'whence':true}",
                "Invalid parameter type for 'whence', expected: GuestFileWhence",
            ),
            (
                "guest-file-seek",
                "{'handle':1,'offset':0,'whence':null}",
                "Invalid parameter type for 'whence', expected: GuestFileWhence",
            ),
            (
                "guest-file-seek",
                "{'handle':1,'offset':0,'whence':0.5}",
                "Invalid parameter type for 'whence', expected: integer",
            ),
            (
                "guest-file-seek",
                "{'handle':1,'offset':0,'whence':'top'}",
                "Parameter 'whence' does not accept value 'top'",
            ),
        ] {
            assert_eq!(refused(name, arguments), text, "{name} {arguments}");
        }
    }

    /// The visitor goes through the schema and stops at the first fault; it looks for members it does not know last.
    #[test]
    fn the_first_fault_in_the_order_of_the_schema_counts() {
        let seek = |arguments| refused("guest-file-seek", arguments);
        assert_eq!(seek("{'whence':true,'x':1}"), "Parameter 'handle' is missing");
        assert_eq!(seek("{'whence':true,'handle':1}"), "Parameter 'offset' is missing");
        assert_eq!(seek("{'handle':'1'}"), "Invalid parameter type for 'handle', expected: integer");
        assert_eq!(
            seek("{'offset':'1','handle':1}"),
            "Invalid parameter type for 'offset', expected: integer"
        );
        let exec = |arguments| refused("guest-exec", arguments);
        assert_eq!(exec("{'env':5}"), "Parameter 'path' is missing");
        assert_eq!(exec("{'env':5,'path':'x','y':1}"), "Invalid parameter type for 'env', expected: array");
    }

    /// What Debian's qemu-ga answers to the same.
    #[test]
    fn a_fault_in_an_item_of_a_list_names_its_place() {
        let vcpus = |items: &str| refused("guest-set-vcpus", &format!("{{'vcpus':{items}}}"));
        assert_eq!(vcpus("[1]"), "Invalid parameter type for 'vcpus[0]', expected: object");
        assert_eq!(vcpus("[{'online':true}]"), "Parameter 'vcpus[0].logical-id' is missing");
        assert_eq!(vcpus("[{'online':1}]"), "Parameter 'vcpus[0].logical-id' is missing");
        assert_eq!(
            vcpus("[{'logical-id':1,'online':true},{'logical-id':'1'}]"),
            "Invalid parameter type for 'vcpus[1].logical-id', expected: integer"
        );
        assert_eq!(vcpus("[{'logical-id':1,'online':true,'x':1}]"), "Parameter 'vcpus[0].x' is unexpected");
        let request =
            decoded("guest-set-vcpus", r#"{"vcpus":[{"online":false,"can-offline":true,"logical-id":3}]}"#);
        let Request::Hotplug(proto::hotplug::Request::SetVcpus(set)) = request else { panic!("{request:?}") };
        assert_eq!((set.vcpus[0].logical_id, set.vcpus[0].online), (3, false));
    }

    #[test]
    fn what_is_right_arrives_typed() {
        let request = decoded(
            "guest-exec",
            r#"{"capture-output":true,"arg":["\u0000"],"path":"x","input-data":"aGk="}"#,
        );
        let Request::Exec(proto::exec::Request::Exec(exec)) = request else { panic!("{request:?}") };
        assert_eq!(exec.path.0, b"x");
        assert_eq!(exec.arg.unwrap()[0].0, b"\xc0\x80");
        assert_eq!(exec.env, None);
        assert_eq!(exec.capture_output, Capture::Separated);
        assert!(exec.input_data.present && exec.input_data.text.0 == b"aGk=");
    }

    #[test]
    fn an_array_has_at_most_131072_items() {
        let array = |items: usize| format!("{{'path':'x','arg':['a'{}]}}", ",'a'".repeat(items - 1));
        assert!(decode("guest-exec", &mut members(&array(ITEMS))).unwrap().is_ok());
        assert_eq!(refused("guest-exec", &array(ITEMS + 1)), "Parameter 'arg' has too many items");
    }

    #[test]
    fn an_unknown_name_is_nobodys() {
        assert!(decode("ping", &mut []).is_none());
    }
}
