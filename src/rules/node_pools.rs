//! Karpenter NodePools.
