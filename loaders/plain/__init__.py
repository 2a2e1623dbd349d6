"""torch's path of `loaders.DataLoader`: torch's own loader, and a state for it.

position     where a loader stands: state_dict, load_state_dict
passes       torch's iterators, which keep count
indices      which indices a pass draws, and how it goes on from its middle
streams      datasets with a state, in the workers
state        what is saved, and what is refused
generators   states of random generators
stateful     the protocol
"""
