//! Values of policy files by their keys, each with its origin. One layer is laid over another; nothing here knows what a
//! key means.

use std::{collections::BTreeMap, ops::Range};

use serde::Deserialize as _;
use toml::{
    Spanned, Table, Value,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::source::{SourceLines, ValueOrigin};

#[derive(Clone, Debug, PartialEq)]
pub struct Leaf {
    pub value: Value,
    pub origin: ValueOrigin,
}

/// Values by key, such as `detect.duplicates.warn`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layer(BTreeMap<String, Leaf>);

impl Layer {
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Leaf> {
        self.0.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Leaf)> {
        self.0.iter().map(|(key, leaf)| (key.as_str(), leaf))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the values in some of its tables.
    pub(super) fn below(&self, tables: &[&str]) -> Self {
        let is_below = |key: &str| key.split('.').next().is_some_and(|top| tables.contains(&top));
        let found = self.0.iter().filter(|(key, _)| is_below(key));
        Self(found.map(|(key, leaf)| (key.clone(), leaf.clone())).collect())
    }

    /// Lays `upper` over this one.
    pub(super) fn cover(&mut self, upper: &Self) {
        self.0.extend(upper.0.iter().map(|(key, leaf)| (key.clone(), leaf.clone())));
    }

    /// Returns this layer with `upper` laid over it.
    pub(super) fn covered(&self, upper: &Self) -> Self {
        let mut all = self.clone();
        all.cover(upper);
        all
    }

    /// Adds the values of a table of a file, except the tables in `without`.
    pub(super) fn take(
        &mut self,
        lines: &SourceLines,
        table: &DeTable<'_>,
        without: &[&str],
    ) -> Result<(), toml::de::Error> {
        self.take_below(lines, table, "", without)
    }

    fn take_below(
        &mut self,
        lines: &SourceLines,
        table: &DeTable<'_>,
        path: &str,
        without: &[&str],
    ) -> Result<(), toml::de::Error> {
        for (key, value) in table {
            if without.contains(&key.get_ref().as_ref()) {
                continue;
            }
            let path = format!("{path}{}", key.get_ref());
            if let DeValue::Table(below) = value.get_ref() {
                self.take_below(lines, below, &format!("{path}."), &[])?;
                continue;
            }
            let origin = lines.origin(key.span());
            let value = Value::deserialize(ValueDeserializer::from(value.clone()))?;
            self.0.insert(path, Leaf { value, origin });
        }
        Ok(())
    }

    /// Returns the tables that these values form.
    pub(super) fn table(&self) -> Table {
        let mut all = Table::new();
        for (key, leaf) in &self.0 {
            put(&mut all, key, leaf.value.clone());
        }
        all
    }
}

fn put(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        Some((first, rest)) => {
            let below = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(below) = below {
                put(below, rest, value);
            }
        }
        None => {
            table.insert(key.to_owned(), value);
        }
    }
}

/// The tables of an array, each with the place of its header.
pub(super) fn tables<'a, 'i>(
    value: Option<&'a Spanned<DeValue<'i>>>,
) -> impl Iterator<Item = (Range<usize>, &'a DeTable<'i>)> {
    let all = value.and_then(|value| value.get_ref().as_array()).into_iter().flatten();
    all.filter_map(|one| Some((one.span(), one.get_ref().as_table()?)))
}
