class ErrorStudy:
    def __init__(self, w, o, s):
        pass

    def measure(self, op, c):
        return {}, {}, {}
