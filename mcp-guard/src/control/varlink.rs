//! Describes Rust types in Varlink's language, see <https://varlink.org/Interface-Definition>.

use std::{collections::BTreeMap, fmt::Display};

use mcp_guard_core::id::{CgroupId, GuardId, Pid, Ticks};

/// The named types of an interface: name to definition.
pub(super) type Types = BTreeMap<&'static str, String>;

/// The type of a value on the wire.
pub(super) trait WireType {
    /// Returns the type as it is written after the name of a field. Adds the named types it refers to to
    /// `types`.
    fn describe(types: &mut Types) -> String;
}

/// A struct that is described by its serialised fields. [`fields`] implements it.
pub(super) trait Fields {
    /// Returns each field as `name: type`.
    fn fields(types: &mut Types) -> Vec<String>;
}

/// Implements [`Fields`]. Types are taken from the struct; a field of the struct that is not listed is a
/// compiler error. A caller may leave out a `field: optional`; a `field: flattened` is replaced by its own
/// fields.
macro_rules! fields {
    ($name:ident { $($field:ident $(: $how:ident)?),* $(,)? }) => {
        impl $crate::control::varlink::Fields for $name {
            #[allow(unused_variables, reason = "a struct may be empty")]
            fn fields(types: &mut $crate::control::varlink::Types) -> Vec<String> {
                let _is_complete = |one: Self| {
                    let Self { $($field: _),* } = one;
                };
                let all: &[Vec<String>] =
                    &[$($crate::control::varlink::fields!(@ types, $field $($how)?)),*];
                all.concat()
            }
        }
    };
    (@ $types:ident, $field:ident) => {
        vec![$crate::control::varlink::field(stringify!($field), |one: &Self| &one.$field, $types)]
    };
    (@ $types:ident, $field:ident optional) => {
        vec![$crate::control::varlink::optional(stringify!($field), |one: &Self| &one.$field, $types)]
    };
    (@ $types:ident, $field:ident flattened) => {
        $crate::control::varlink::flattened(|one: &Self| &one.$field, $types)
    };
}

/// Implements [`WireType`] for types that have no name in Varlink.
macro_rules! plain {
    ($($rust:ty => $varlink:literal),* $(,)?) => {
        $(impl $crate::control::varlink::WireType for $rust {
            fn describe(_types: &mut $crate::control::varlink::Types) -> String {
                $varlink.to_owned()
            }
        })*
    };
}

/// Implements [`WireType`] for a struct that has [`Fields`], under a name.
macro_rules! named {
    ($($rust:ty => $varlink:literal),* $(,)?) => {
        $(impl $crate::control::varlink::WireType for $rust {
            fn describe(types: &mut $crate::control::varlink::Types) -> String {
                $crate::control::varlink::declare::<Self>($varlink, types)
            }
        })*
    };
}

/// Implements [`WireType`] for an enum that is serialised as it is displayed. A variant that is not listed is
/// a compiler error.
macro_rules! words {
    ($name:ident { $($variant:ident),* $(,)? }) => {
        impl $crate::control::varlink::WireType for $name {
            fn describe(types: &mut $crate::control::varlink::Types) -> String {
                let _is_complete = |one: Self| match one {
                    $(Self::$variant => {}),*
                };
                let words = [$(&Self::$variant as &dyn std::fmt::Display),*];
                $crate::control::varlink::declare_words(stringify!($name), &words, types)
            }
        }
    };
}

pub(super) use {fields, named, plain, words};

plain! { CgroupId => "int", GuardId => "int", Pid => "int", bool => "bool", f64 => "float", String => "string", Ticks => "int", u32 => "int", u64 => "int", usize => "int" }

impl<T: WireType> WireType for Option<T> {
    fn describe(types: &mut Types) -> String {
        format!("?{}", T::describe(types))
    }
}

impl<T: WireType> WireType for Vec<T> {
    fn describe(types: &mut Types) -> String {
        format!("[]{}", T::describe(types))
    }
}

impl<T: WireType> WireType for BTreeMap<String, T> {
    fn describe(types: &mut Types) -> String {
        format!("[string]{}", T::describe(types))
    }
}

/// Describes a field. `_of` only supplies its type.
pub(super) fn field<S, T: WireType>(name: &str, _of: fn(&S) -> &T, types: &mut Types) -> String {
    format!("{name}: {}", T::describe(types))
}

pub(super) fn optional<S, T: WireType>(name: &str, _of: fn(&S) -> &T, types: &mut Types) -> String {
    format!("{name}: {}", Option::<T>::describe(types))
}

pub(super) fn flattened<S, T: Fields>(_of: fn(&S) -> &T, types: &mut Types) -> Vec<String> {
    T::fields(types)
}

pub(super) fn declare<T: Fields>(name: &'static str, types: &mut Types) -> String {
    let fields = T::fields(types).join(",\n  ");
    types.insert(name, format!("(\n  {fields}\n)"));
    name.to_owned()
}

pub(super) fn declare_words(
    name: &'static str,
    words: &[&dyn Display],
    types: &mut Types,
) -> String {
    let words: Vec<String> = words.iter().map(ToString::to_string).collect();
    types.insert(name, format!("({})", words.join(", ")));
    name.to_owned()
}
