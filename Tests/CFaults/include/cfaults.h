void cfaults_nothing(void);
