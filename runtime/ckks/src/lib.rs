//! RNS-CKKS with bootstrapping, generic over the backend.
#![forbid(unsafe_code)]
