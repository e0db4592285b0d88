//! A JSON value as it came from the host, before it is typed.
//!
//! Runs in the frontend. Built by the readers within their limits; small, because a request may have two million
//! values.

/// A JSON value. Text is bytes: QEMU's dialect knows C0 80 for `\u0000`, which is not UTF-8.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Value {
    /// `null`
    #[default]
    Null,
    /// `true`, `false`
    Bool(bool),
    /// An integer that fits.
    Int(i64),
    /// An integer above [`i64::MAX`] that fits.
    Uint(u64),
    /// Any other number; finite.
    Double(f64),
    /// A string, without quotes and escapes.
    Text(Box<[u8]>),
    /// An array.
    List(Box<[Value]>),
    /// An object, in the order it came in.
    Object(Box<[Member]>),
}

/// One member of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Its name.
    pub name: Box<[u8]>,
    /// Its value.
    pub value: Value,
}

impl Value {
    /// The text, if it is one.
    pub fn text(&self) -> Option<&[u8]> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Takes the last member called `name` out of `members`, leaving null in its place.
pub(crate) fn take(members: &mut [Member], name: &[u8]) -> Option<Value> {
    let member = members.iter_mut().rev().find(|member| *member.name == *name)?;
    Some(std::mem::take(&mut member.value))
}

/// A number in decimal notation; nothing if it is too large for any type.
pub(crate) fn number(text: &str) -> Option<Value> {
    if !text.contains(['.', 'e', 'E']) {
        if let Ok(number) = text.parse() {
            return Some(Value::Int(number));
        }
        if let Ok(number) = text.parse() {
            return Some(Value::Uint(number));
        }
    }
    text.parse().ok().filter(|double: &f64| double.is_finite()).map(Value::Double)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_million_values_are_fifty_megabytes() {
        assert_eq!(size_of::<Value>(), 24);
    }

    #[test]
    fn a_number_takes_the_narrowest_form_that_holds_it() {
        assert_eq!(number("-0"), Some(Value::Int(0)));
        assert_eq!(number("-9223372036854775808"), Some(Value::Int(i64::MIN)));
        assert_eq!(number("9223372036854775808"), Some(Value::Uint(1 << 63)));
        assert_eq!(number("18446744073709551616"), Some(Value::Double(18_446_744_073_709_551_616.0)));
        assert_eq!(number("-9223372036854775809"), Some(Value::Double(-9_223_372_036_854_775_808.0)));
        assert_eq!(number("1e2"), Some(Value::Double(100.0)));
        assert_eq!(number("1e999"), None);
    }
}
