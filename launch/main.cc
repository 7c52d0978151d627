// The program: one dispatch on the first argument.
#include <cstdio>

int main() {
  std::fputs("usage: shoal COMMAND\n", stderr);
  return 2;
}
