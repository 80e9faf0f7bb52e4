//! Field offsets of the running kernel, from `/sys/kernel/btf/vmlinux`.
//!
//! This parser exists because aya does not expose member lists, and the general BTF crates take ten
//! times the memory. The format is described in the kernel's Documentation/bpf/btf.rst.

use std::{fs, path::Path};

const MAGIC: u16 = 0xeb9f;
/// Most levels of nested structs. A file with more is damaged.
const MAX_DEPTH: u32 = 16;
/// Most members that a search for one field looks at. The kernel's largest structs have some hundreds.
/// A struct that contains itself several times would have any number.
const MAX_MEMBERS: u32 = 1 << 16;

mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}: {source}; the kernel must be built with CONFIG_DEBUG_INFO_BTF")]
    Read { path: String, source: std::io::Error },
    #[error("the kernel's BTF is damaged: {0}")]
    Damaged(&'static str),
    #[error("this kernel has no {0}; it is too old or too new for this build of mcp-guard")]
    Missing(String),
    #[error("{field} has {found} bytes in this kernel, but mcp-guard expects {expected}")]
    Size { field: String, found: u64, expected: u64 },
}

pub struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    /// The offset of each type's header. The index is the type's id minus one.
    types: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Type {
    at: usize,
    name: u32,
    kind: u32,
    members: usize,
    bitfields: bool,
    /// The size, or the type that it refers to.
    size_or_type: u32,
}

impl Btf {
    /// # Errors
    /// If the file cannot be read, or is not BTF.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = fs::read(path)
            .map_err(|source| Error::Read { path: path.display().to_string(), source })?;
        Self::parse(bytes)
    }

    /// # Errors
    /// If the bytes are not BTF.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, Error> {
        let word = |at| u32_at(&bytes, at).ok_or(Error::Damaged("short header"));
        if word(0)? & 0xffff != u32::from(MAGIC) {
            return Err(Error::Damaged("not BTF of this byte order"));
        }
        let header = word(4)?;
        let types_from = add(header, word(8)?)?;
        let types_to = add(u32::try_from(types_from).unwrap_or(u32::MAX), word(12)?)?;
        let strings = add(header, word(16)?)?;
        let mut btf = Self { bytes, strings, types: Vec::new() };
        let mut at = types_from;
        while at < types_to {
            let one = btf.header(at).ok_or(Error::Damaged("short type section"))?;
            btf.types.push(u32::try_from(at).map_err(|_| Error::Damaged("too large"))?);
            at += 12 + one.trailer().ok_or(Error::Damaged("unknown kind of type"))?;
        }
        Ok(btf)
    }

    /// Returns the offset in bytes of `structure.field`, which must have `size` bytes. Anonymous
    /// structs and unions are searched too.
    ///
    /// # Errors
    /// If there is no such field, or it has another size: the programs would read garbage.
    pub fn offset(&self, structure: &str, field: &str, size: u64) -> Result<u64, Error> {
        let (bits, member) = self.find(structure, field)?;
        let bytes = self.size(member, 0).ok_or(Error::Damaged("a type has no size"))?;
        if bytes != size || bits % 8 != 0 {
            return Err(Error::Size {
                field: format!("{structure}.{field}"),
                found: bytes,
                expected: size,
            });
        }
        Ok(bits / 8)
    }

    /// Returns the offset in bytes of an embedded structure of any size.
    ///
    /// # Errors
    /// If there is no such field.
    pub fn offset_of_struct(&self, structure: &str, field: &str) -> Result<u64, Error> {
        self.find(structure, field).map(|(bits, _)| bits / 8)
    }

    /// Returns the number of arguments of a raw tracepoint, without the context that comes before
    /// them.
    #[must_use]
    pub fn tracepoint_arguments(&self, name: &str) -> Option<usize> {
        let typedef = self.named(&format!("btf_trace_{name}"), kind::TYPEDEF).next()?;
        let pointer = self.get(typedef.size_or_type)?;
        let prototype = self.get(pointer.size_or_type)?;
        (prototype.kind == kind::FUNC_PROTO).then(|| prototype.members.saturating_sub(1))
    }

    fn named<'a>(&'a self, name: &'a str, kind: u32) -> impl Iterator<Item = Type> + 'a {
        self.types
            .iter()
            .filter_map(|at| self.header(*at as usize))
            .filter(move |one| one.kind == kind && self.string_is(one.name, name))
    }

    /// Returns the offset in bits and the type of a field of the first struct of this name that has it.
    fn find(&self, structure: &str, field: &str) -> Result<(u64, u32), Error> {
        let mut left = MAX_MEMBERS;
        self.named(structure, kind::STRUCT)
            .find_map(|one| self.member(one, field, 0, &mut left))
            .ok_or_else(|| match left {
                0 => Error::Damaged("a struct has too many members"),
                _ => Error::Missing(format!("{structure}.{field}")),
            })
    }

    /// Returns the offset in bits and the type of a member. Looks at most at `left` members.
    fn member(
        &self,
        structure: Type,
        field: &str,
        depth: u32,
        left: &mut u32,
    ) -> Option<(u64, u32)> {
        if depth > MAX_DEPTH {
            return None;
        }
        (0..structure.members).find_map(|index| {
            *left = left.checked_sub(1)?;
            let at = structure.at + 12 + index * 12;
            let name = u32_at(&self.bytes, at)?;
            let member = u32_at(&self.bytes, at + 4)?;
            let raw = u32_at(&self.bytes, at + 8)?;
            // A bitfield has no address. Its width is in the high byte.
            if structure.bitfields && raw >> 24 != 0 {
                return None;
            }
            let bits = u64::from(if structure.bitfields { raw & 0x00ff_ffff } else { raw });
            if self.string_is(name, field) {
                return Some((bits, member));
            }
            if !self.string_is(name, "") {
                return None;
            }
            let inner = self.get(member)?;
            if !matches!(inner.kind, kind::STRUCT | kind::UNION) {
                return None;
            }
            self.member(inner, field, depth + 1, left).map(|(more, found)| (bits + more, found))
        })
    }

    fn size(&self, id: u32, depth: u32) -> Option<u64> {
        let one = self.get(id)?;
        match one.kind {
            kind::PTR => Some(8),
            kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 => {
                Some(u64::from(one.size_or_type))
            }
            kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG
                if depth < MAX_DEPTH =>
            {
                self.size(one.size_or_type, depth + 1)
            }
            _ => None,
        }
    }

    fn get(&self, id: u32) -> Option<Type> {
        let at = self.types.get(usize::try_from(id).ok()?.checked_sub(1)?)?;
        self.header(*at as usize)
    }

    fn header(&self, at: usize) -> Option<Type> {
        let info = u32_at(&self.bytes, at + 4)?;
        Some(Type {
            at,
            name: u32_at(&self.bytes, at)?,
            kind: (info >> 24) & 0x1f,
            members: (info & 0xffff) as usize,
            bitfields: info >> 31 == 1,
            size_or_type: u32_at(&self.bytes, at + 8)?,
        })
    }

    fn string_is(&self, offset: u32, expected: &str) -> bool {
        let rest = self.bytes.get(self.strings + offset as usize..).unwrap_or_default();
        rest.starts_with(expected.as_bytes()) && rest.get(expected.len()) == Some(&0)
    }
}

impl Type {
    /// The number of bytes that follow the header.
    fn trailer(self) -> Option<usize> {
        match self.kind {
            kind::INT | kind::VAR | kind::DECL_TAG => Some(4),
            kind::ARRAY => Some(12),
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => Some(self.members * 12),
            kind::ENUM | kind::FUNC_PROTO => Some(self.members * 8),
            1..=19 => Some(0),
            _ => None,
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

fn add(a: u32, b: u32) -> Result<usize, Error> {
    a.checked_add(b).map(|sum| sum as usize).ok_or(Error::Damaged("offset out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_are_errors() {
        for bytes in [vec![], vec![0; 24], vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0]] {
            assert!(Btf::parse(bytes).is_err());
        }
        // The header promises a type section that the file does not have.
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [24u32, 0, 4096, 4096, 1] {
            bytes.extend(word.to_ne_bytes());
        }
        assert!(matches!(Btf::parse(bytes), Err(Error::Damaged(_))));
    }

    /// A file with one struct `s` whose members have no name and are of the type with this id.
    fn nested(members: u32, member: u32) -> Btf {
        let mut words = vec![u32::from(MAGIC) | 1 << 16, 24, 0, 12 + 12 * members];
        words.extend([12 + 12 * members, 3]);
        words.extend([1, kind::STRUCT << 24 | members, 8]);
        words.extend((0..members).flat_map(|_| [0, member, 0]));
        let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        bytes.extend(b"\0s\0");
        Btf::parse(bytes).unwrap()
    }

    #[test]
    fn a_struct_that_contains_itself_is_damaged() {
        // Three members at each of seventeen levels are 129 million, and ten would take for ever.
        let btf = nested(3, 1);
        assert!(matches!(btf.offset("s", "f", 8), Err(Error::Damaged(_))));
        assert!(matches!(btf.offset_of_struct("s", "f"), Err(Error::Damaged(_))));
        assert!(matches!(nested(3, 2).offset("s", "f", 8), Err(Error::Missing(_))));
    }
}
