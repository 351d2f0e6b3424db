from neurogen.kernels.cuda import heavier, truncation


def keep(row, min_p):
    return heavier(row, min_p)


sample, probs, support = truncation(keep, "min_p")
