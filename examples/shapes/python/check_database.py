"""With unittest, over SQLite at a fixed place."""

import sqlite3
import unittest


class Database(unittest.TestCase):
    def setUp(self):
        self.database = sqlite3.connect("/tmp/of-this-test")
        self.addCleanup(self.database.close)

    def test_keeps_what_it_is_given(self):
        self.database.execute("create table word (text)")
        self.database.execute("insert into word values ('kept')")
        self.assertEqual(self.database.execute("select text from word").fetchall(), [("kept",)])


if __name__ == "__main__":
    unittest.main()
