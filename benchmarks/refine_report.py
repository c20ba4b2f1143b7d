def report(rows, out, device):
    pass
