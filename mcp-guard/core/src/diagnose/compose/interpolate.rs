//! Fills in variables in the values of compose files.

use std::collections::{BTreeMap, BTreeSet};

use super::super::facts::Variables;

/// Fills in `$V`, `${V}`, `${V:-default}`, `${V-default}` and `$$` as compose does. The flag is true if a
/// variable was filled in.
pub fn interpolate(text: &str, variables: &Variables) -> Result<(String, bool), String> {
    fill_in(text, |name| match (&variables.unread, variables.values.get(name)) {
        (Some(why), _) => Err(why.clone()),
        (None, Some(None)) => Err("the value of a variable is not a number".to_owned()),
        (None, Some(Some(value))) => Ok(Some(value.clone())),
        (None, None) => Ok(None),
    })
}

/// Returns the variables that a text uses, with their values in `all`. A value that is not a number is not
/// kept, because it cannot be a limit.
pub fn used(text: &str, all: &BTreeMap<String, String>) -> BTreeMap<String, Option<String>> {
    let mut names = BTreeSet::new();
    // The error can be ignored: `interpolate` stops at the same place.
    let _ = fill_in(text, |name| {
        names.insert(name.to_owned());
        Ok(Some(String::new()))
    });
    let value = |name: String| {
        let value = all.get(&name)?;
        let kept = value.chars().all(is_of_number).then(|| value.clone());
        Some((name, kept))
    };
    names.into_iter().filter_map(value).collect()
}

fn is_of_number(c: char) -> bool {
    c.is_ascii_digit() || matches!(c, '+' | '-' | ' ')
}

fn fill_in(
    text: &str,
    mut value: impl FnMut(&str) -> Result<Option<String>, String>,
) -> Result<(String, bool), String> {
    let (mut result, mut filled) = (String::new(), false);
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            result.push('$');
            rest = after;
            continue;
        }
        let (expression, after) = match after.strip_prefix('{') {
            Some(after) => after.split_once('}').ok_or("a ${ without a closing brace")?,
            None => {
                let end = after.find(|c: char| !is_name(c)).unwrap_or(after.len());
                after.split_at(end)
            }
        };
        result.push_str(&value_of(expression, &mut value)?);
        filled = true;
        rest = after;
    }
    result.push_str(rest);
    Ok((result, filled))
}

fn value_of(
    expression: &str,
    value: impl FnOnce(&str) -> Result<Option<String>, String>,
) -> Result<String, String> {
    let end = expression.find(|c: char| !is_name(c)).unwrap_or(expression.len());
    let (name, operator) = expression.split_at(end);
    let known = value(name)?;
    let filled = known.as_ref().filter(|value| !value.is_empty());
    match (operator.strip_prefix(":-"), operator.strip_prefix('-')) {
        (Some(default), _) => Ok(filled.map_or(default, String::as_str).to_owned()),
        (None, Some(default)) => Ok(known.unwrap_or_else(|| default.to_owned())),
        // The variable may have been set in the shell that ran compose.
        (None, None) => known
            .filter(|_| operator.is_empty())
            .ok_or_else(|| format!("the value of ${{{expression}}} is not known")),
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_used_variables_and_numbers_are_kept() {
        let all = [("A", "25"), ("B", "hunter2"), ("C", "7"), ("EMPTY", "")];
        let all = all.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let kept = used("${A}${B:-5}$EMPTY${NONE:-3}$$C", &all);
        let names: Vec<&str> = kept.keys().map(String::as_str).collect();
        assert_eq!(names, ["A", "B", "EMPTY"], "C is not used, and NONE is not set");
        assert_eq!([&kept["A"], &kept["B"]], [&Some("25".to_owned()), &None]);
    }
}
