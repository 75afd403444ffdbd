//! Sessions: encrypted state arrays and the number of tokens in them, in memory and as files.

use std::path::Path;
use std::sync::Arc;

use crate::Error;
use crate::error::SessionFault;
use crate::executor::{Algebra, CkksProgram, States};
use crate::files::{self, Kind, Reader, push_string};

use super::Server;

const KIND: Kind = Kind { magic: SavedSession::MAGIC, version: 1 };

/// What is wrong with a payload that does not follow the format.
const SENSELESS: &str = "its contents make no sense";

/// One client's conversation: the state of the plan's arrays after some tokens.
#[derive(Clone, Debug)]
pub struct Session<C> {
    pub(crate) states: States<C>,
    pub(crate) position: usize,
}

impl<C> Session<C> {
    pub(super) fn new(program: &CkksProgram) -> Self {
        Self { states: States::new(program), position: program.prefix.len() }
    }

    /// Number of tokens that the state holds, which is the position of the next one.
    pub fn position(&self) -> usize {
        self.position
    }

    /// The state.
    pub fn states(&self) -> &States<C> {
        &self.states
    }
}

/// A session's file whose arrays are not read yet: all that can be known of it without the engine.
pub struct SavedSession {
    /// Number of tokens that the state holds.
    pub position: usize,
    payload: Vec<u8>,
    /// Where the arrays begin.
    arrays: usize,
}

impl SavedSession {
    /// What such a file begins with.
    pub const MAGIC: [u8; 8] = *b"CMIRSESS";

    /// Reads the file of a session of the plan with this hash, in the representation of ciphertexts of this name.
    pub fn read(path: &Path, plan_hash: [u8; 32], representation: &str) -> Result<Self, Error> {
        let fail = |fault: SessionFault| Error::SessionInvalid { path: path.to_owned(), fault };
        let senseless = || fail(SessionFault::Damaged(SENSELESS.to_owned()));
        let payload = files::read(KIND, path).map_err(fail)?;
        let mut reader = Reader(&payload);
        if reader.array::<32>().ok_or_else(senseless)? != plan_hash {
            return Err(Error::SessionMismatch { path: path.to_owned() });
        }
        let name = String::from_utf8_lossy(reader.string().ok_or_else(senseless)?).into_owned();
        if name != representation {
            return Err(fail(SessionFault::OtherBackend { saved: name, asked: representation.to_owned() }));
        }
        let position = reader.u32().ok_or_else(senseless)? as usize;
        let arrays = payload.len() - reader.0.len();
        Ok(Self { position, payload, arrays })
    }
}

impl<A: Algebra> Server<'_, A> {
    /// Writes a session to a file. It holds ciphertexts only, and can be kept by whoever runs the server.
    pub fn save(&self, session: &Session<A::Ciphertext>, path: &Path) -> Result<(), Error> {
        let algebra = self.executor.algebra();
        let mut payload = Vec::new();
        payload.extend(self.plan_hash);
        push_string(&mut payload, algebra.name().as_bytes());
        payload.extend((session.position as u32).to_le_bytes());
        payload.extend((session.states.arrays().len() as u32).to_le_bytes());
        for array in session.states.arrays() {
            payload.extend((array.len() as u32).to_le_bytes());
            for element in array {
                payload.push(u8::from(element.is_some()));
                if let Some(element) = element {
                    push_string(&mut payload, &algebra.to_bytes(element)?);
                }
            }
        }
        files::write(KIND, &payload, path, false)
    }

    /// Reads a session that was saved with the same plan and the same representation of ciphertexts.
    pub fn load(&self, path: &Path) -> Result<Session<A::Ciphertext>, Error> {
        let fail =
            |message: String| Error::SessionInvalid { path: path.to_owned(), fault: SessionFault::Damaged(message) };
        let senseless = || fail(SENSELESS.to_owned());
        let saved = SavedSession::read(path, self.plan_hash, self.executor.algebra().name())?;
        let mut reader = Reader(&saved.payload[saved.arrays..]);
        let mut session = self.open();
        session.position = saved.position;
        let context = self.executor.program().context as usize;
        if session.position > context || reader.u32() != Some(session.states.arrays().len() as u32) {
            return Err(senseless());
        }
        let program = self.executor.program();
        for (array, state) in session.states.arrays_mut().iter_mut().zip(&program.states) {
            if reader.u32() != Some(array.len() as u32) {
                return Err(senseless());
            }
            for element in array {
                *element = match reader.array().ok_or_else(senseless)? {
                    [0] => None,
                    [1] => {
                        let bytes = reader.string().ok_or_else(senseless)?;
                        let ciphertext = self.executor.algebra().restore(bytes);
                        let ciphertext = ciphertext.map_err(|error| fail(error.to_string()))?;
                        let (level, product) = self.executor.algebra().level(&ciphertext);
                        if state.level != Some(level) || product {
                            return Err(senseless());
                        }
                        Some(Arc::new(ciphertext))
                    }
                    _ => return Err(senseless()),
                };
            }
        }
        if reader.is_empty() { Ok(session) } else { Err(senseless()) }
    }
}
