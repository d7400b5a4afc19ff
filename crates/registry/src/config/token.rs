//! The token of the REST API.

use std::path::PathBuf;

use super::files::Files;
use super::mistake::{Wrong, wrong};
use super::upstream::cannot_read;
use super::value;

/// The shortest token that cannot be guessed: 16 random characters of base64 are 96 bits.
const MIN_TOKEN: usize = 16;

/// What is wrong with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// It cannot be in a header.
    #[error("the token is not of letters, digits and signs")]
    Characters,
    /// It can be guessed.
    #[error("the token has fewer than 16 characters")]
    Short,
}

/// The token in a file's bytes; white space around it does not count.
pub(crate) fn token_in(bytes: &[u8]) -> Result<&[u8], TokenError> {
    let token = bytes.trim_ascii();
    match token {
        _ if !token.iter().all(u8::is_ascii_graphic) => Err(TokenError::Characters),
        _ if token.len() < MIN_TOKEN => Err(TokenError::Short),
        token => Ok(token),
    }
}

/// The path of a file with a token in it.
pub(super) fn file(text: &str, files: &dyn Files) -> Result<PathBuf, Wrong> {
    let path = value::path(text)?;
    let bytes = files.read(&path).map_err(|error| cannot_read(text, &error))?;
    let advice = "a file with a token, such as `openssl rand -hex 32` prints";
    token_in(&bytes).map_err(|error| wrong(error.to_string()).write(advice))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_a_header_can_carry_and_nobody_can_guess() {
        assert_eq!(token_in(b" 0123456789abcdef\n"), Ok(&b"0123456789abcdef"[..]));
        assert_eq!(token_in(b"0123456789abcde\n"), Err(TokenError::Short));
        assert_eq!(token_in(b""), Err(TokenError::Short));
        assert_eq!(token_in(b"0123456789abcdef ghi"), Err(TokenError::Characters));
        assert_eq!(token_in("0123456789abcdefü".as_bytes()), Err(TokenError::Characters));
    }
}
