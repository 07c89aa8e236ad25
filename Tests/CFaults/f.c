#include "cfaults.h"
void cfaults_nothing(void) {}
