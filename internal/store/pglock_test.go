package store_test

const holderVariable = "WATCHWORD_TEST_HOLDER"

func holdRow(uri string) int { return 0 }
